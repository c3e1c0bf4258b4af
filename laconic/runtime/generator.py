"""Write text with an exported folder, one token after another, in the runtime that it was exported for."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from laconic.errors import UserError
from laconic.model import Batch
from laconic.runtime.engines import ONNX, OPENVINO, check_runtime
from laconic.runtime.graph import FILE_NAMES
from laconic.runtime.sessions import LOGITS, CachedProgram, OnnxCached, OpenVinoCached, Session, load_cached
from laconic.runtime.stateful import BEAM
from laconic.runtime.written import DECODER_FILES, Seq2SeqProgram, load_seq2seq

MASK, POSITIONS = "attention_mask", "position_ids"


class Generator:
    """The model of an exported folder with a cache, and the texts that it writes.

    Args:
        program: the model.
        start: the first token of the decoder of an encoder-decoder; None for a causal model.

    Example:
        `open` reads a folder that `laconic export` wrote::

            generator = Generator.open(Path("served"))
            logits = generator.prefill(input_ids)        # (batch, vocabulary), of the first new token
            logits = generator.step(logits.argmax(-1))   # of the next one
    """

    def __init__(self, program: CachedProgram | Seq2SeqProgram, start: int | None = None) -> None:
        self.program, self._start = program, start
        self._session: Session | None = None
        self._inputs: Batch = {}

    @classmethod
    def open(cls, folder: Path) -> "Generator":
        """Load an exported folder.

        Args:
            folder: what `laconic export --to onnx` or `--to openvino` wrote for a model that writes text.

        Raises:
            UserError: the folder has no such model, or only one that reads a whole prompt at every call; or the library
                of the runtime is missing.
        """
        runtime = runtime_of(folder)
        check_runtime(runtime)
        if (folder / DECODER_FILES[runtime]).is_file():
            return cls(load_seq2seq(runtime, folder), _start_token(folder))
        program = load_cached(runtime, folder / FILE_NAMES[runtime])
        if not has_cache(program):
            raise UserError(
                f"The model in '{folder}' has no cache, as it reads a whole prompt at every call; export it again, "
                "without --no-cache."
            )
        return cls(program)

    @property
    def version(self) -> str:
        """Name and version of the library that runs the model."""
        return self.program.version

    @property
    def reads_source(self) -> bool:
        """Whether it is an encoder-decoder, which writes after a source, and no causal model."""
        return isinstance(self.program, Seq2SeqProgram)

    def begin(self, rows: int = 1) -> None:
        """Start a new batch of texts of a causal model, of which nothing is read yet.

        Args:
            rows: the number of texts.
        """
        self._session = self.program.start()
        self._inputs = {MASK: torch.ones(rows, 0, dtype=torch.long)}

    def prefill(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch vocabulary"]:
        """Read the prompts of a new batch, or the sources of an encoder-decoder.

        Args:
            input_ids: their tokens. Shorter prompts of a causal model are padded on the left.
            attention_mask: 0 at padding; None if there is none.

        Returns:
            The logits of the first new token of each row.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.begin()
        if isinstance(self.program, Seq2SeqProgram):
            self._inputs = self.program.read_source({"input_ids": input_ids, MASK: mask})
            return self.read(torch.full_like(input_ids[:, :1], self._start or 0))[:, -1]
        self._inputs = {MASK: mask}
        return self.read(input_ids)[:, -1]

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocabulary"]:
        """Read one more token of each row.

        Args:
            tokens: the tokens, which follow those that were read.

        Returns:
            The logits of the token after them.
        """
        return self.read(tokens[:, None])[:, -1]

    def write(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        new: int,
    ) -> Int[Tensor, "batch new"]:
        """Write the most likely token again and again. It does not stop at an end token.

        Args:
            input_ids: as for `prefill`.
            attention_mask: as for `prefill`.
            new: the number of tokens to write.
        """
        written = [self.prefill(input_ids, attention_mask).argmax(-1)]
        for _ in range(new - 1):
            written.append(self.step(written[-1]).argmax(-1))
        return torch.stack(written, dim=1)

    def read(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Read the next tokens of each row.

        Args:
            ids: the tokens, which follow those that were read.

        Returns:
            The logits after each of them.
        """
        session = self._session
        assert session is not None, "begin or prefill comes first"
        feeds = {**self._inputs, "input_ids": ids}
        if MASK in feeds:
            length = session.length + ids.shape[1]
            # A prompt has its mask; there is no padding after it.
            feeds[MASK] = pad(feeds[MASK], (0, length - feeds[MASK].shape[1]), value=1)
            feeds[POSITIONS] = (feeds[MASK].cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            self._inputs[MASK] = feeds[MASK]
        return session.read(feeds)[LOGITS]


def runtime_of(folder: Path) -> str:
    """The runtime that a folder was exported for.

    Raises:
        UserError: the folder has no exported model.
    """
    for runtime in (ONNX, OPENVINO):
        if any((folder / names[runtime]).is_file() for names in (FILE_NAMES, DECODER_FILES)):
            return runtime
    raise UserError(f"The folder '{folder}' has no model of ONNX Runtime or OpenVINO; give one of `laconic export`.")


def has_cache(program: CachedProgram) -> bool:
    """Whether a model that was loaded from a file has a cache: not every exported model has one."""
    match program:
        case OnnxCached():
            return any(name.startswith("past_key_values") for name in program.following.inputs)
        case OpenVinoCached():
            return BEAM in program.program.inputs
    return False


def _start_token(folder: Path) -> int:
    """The first token that the decoder of an encoder-decoder reads."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            for key in ("decoder_start_token_id", "bos_token_id"):
                if isinstance(content.get(key), int):
                    return content[key]
    return 0
