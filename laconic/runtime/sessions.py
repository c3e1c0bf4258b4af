"""Run exported models with a cache: a session is one batch of texts that a model reads step by step.

The first call of a session reads a prompt, and later calls read the tokens that follow. ONNX Runtime takes the cache as
inputs and gives it as outputs, which a session keeps; in OpenVINO a request keeps it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.model import Batch
from laconic.runtime.cache_layout import PAST, PRESENT
from laconic.runtime.engines import ONNX, OnnxProgram, OpenVinoProgram, Program
from laconic.runtime.stateful import BEAM

LOGITS, MASK = "logits", "attention_mask"
BY_TOKEN = ("input_ids", "position_ids", "token_type_ids")
"""Inputs with one entry for each token of a call. A mask has one for each token so far."""


class Session(ABC):
    """A batch of texts, and the cache of their tokens.

    Attributes:
        length: the number of tokens in the cache.
    """

    def __init__(self) -> None:
        self.length = 0

    def read(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the next tokens of every row.

        Args:
            feeds: all inputs of the model but the cache, by name. `input_ids` (batch, tokens) are the tokens that
                follow those in the cache, and `attention_mask` has all tokens.

        Returns:
            The outputs by name, without the cache: `logits` (batch, tokens, vocabulary).

        Raises:
            UserError: the runtime cannot run the model on these inputs.
        """
        outputs = self._run(feeds)
        self.length += feeds["input_ids"].shape[1]
        return outputs

    @abstractmethod
    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the model on the next tokens, and keep its cache."""

    @abstractmethod
    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Go on with other rows of the cache, as beam search does.

        Args:
            rows: for each row of the next call the row of the cache that it follows.
        """


class CachedProgram(Program):
    """A model with a cache, loaded in its runtime."""

    @abstractmethod
    def start(self) -> Session:
        """Start with an empty cache."""

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        """Run the model on a batch that nothing precedes."""
        return self.start().read(feeds)


class OnnxCached(CachedProgram):
    """A model in ONNX Runtime whose cache is inputs and outputs.

    Args:
        following: the model that reads a cache.
        first: the model for the first call, which reads none; None if `following` reads an empty cache there.
    """

    def __init__(self, following: OnnxProgram, first: OnnxProgram | None = None) -> None:
        self.version, self.following, self.first = following.version, following, first

    def start(self) -> Session:
        return _OnnxSession(self)


class _OnnxSession(Session):
    def __init__(self, programs: OnnxCached) -> None:
        super().__init__()
        self._programs, self._cache = programs, dict[str, Tensor]()

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first, program = self._programs.first, self._programs.following
        if not self._cache and first is not None:
            program = first
        elif not self._cache:
            self._cache = _empty(program, len(feeds["input_ids"]))
        outputs = program({name: self._cache[name] if name in self._cache else feeds[name] for name in program.inputs})
        present = {name: tensor for name, tensor in outputs.items() if name.split(".")[0] == PRESENT}
        # The keys of the tokens that an encoder read are outputs of the first call only.
        self._cache |= {name.replace(PRESENT, PAST, 1): tensor for name, tensor in present.items()}
        return {name: tensor for name, tensor in outputs.items() if name not in present}

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        self._cache = {name: tensor[rows] for name, tensor in self._cache.items()}


def _empty(program: OnnxProgram, rows: int) -> Batch:
    """A cache of no tokens."""
    shapes = {name: shape for name, shape in program.inputs.items() if name.split(".")[0] == PAST}
    return {name: torch.zeros(rows, int(heads), 0, int(width)) for name, (_, heads, _, width) in shapes.items()}


class OpenVinoCached(CachedProgram):
    """A model in OpenVINO whose requests keep the cache.

    Args:
        program: the model.
    """

    def __init__(self, program: OpenVinoProgram) -> None:
        self.version, self.program = program.version, program

    def start(self) -> Session:
        return _OpenVinoSession(self.program)


class _OpenVinoSession(Session):
    def __init__(self, program: OpenVinoProgram) -> None:
        super().__init__()
        self._inputs, self._run_request = program.inputs, program.new_request()
        self._rows: Tensor | None = None

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows = torch.arange(len(feeds["input_ids"])) if self._rows is None else self._rows
        self._rows = None
        given = {**feeds, BEAM: rows.int()}
        return self._run_request({name: given[name] for name in self._inputs})

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        self._rows = rows if self._rows is None else self._rows[rows]


def load_cached(runtime: str, file: Path, first: Path | None = None, *, exact: bool = False) -> CachedProgram:
    """Load an exported model with a cache.

    Args:
        runtime: `ONNX` or `OPENVINO`.
        file: the file that the runtime reads.
        first: for ONNX Runtime, the file of the model for the first call, if that is another one.
        exact: as in `load_program`.

    Raises:
        UserError: the runtime cannot read a file.
    """
    if runtime == ONNX:
        return OnnxCached(OnnxProgram(file), None if first is None else OnnxProgram(first))
    return OpenVinoCached(OpenVinoProgram(file, exact=exact))


def read_in_parts(session: Session, feeds: Batch) -> Float[Tensor, "batch tokens vocabulary"]:
    """Read texts in three calls, of half of the tokens, of the others but one, and of the last, as generation does.

    Args:
        session: a session that has read nothing.
        feeds: the inputs of all tokens.

    Returns:
        The logits of all tokens.
    """
    length = feeds["input_ids"].shape[1]
    ends = sorted({length // 2, length - 1, length} - {0})
    logits: list[Tensor] = []
    for start, end in zip([0, *ends], ends, strict=False):
        cut = {name: feeds[name][:, start:end] for name in BY_TOKEN if name in feeds}
        mask = {MASK: feeds[MASK][:, :end]} if MASK in feeds else {}
        logits.append(session.read({**feeds, **cut, **mask})[LOGITS])
    return torch.cat(logits, dim=1)
