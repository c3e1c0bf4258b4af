"""Causal models that were exported to ONNX Runtime or OpenVINO, with the cache of keys and values if they have one.

A model without a cache reads a whole text at every call. It predicts tokens, and only the time of the prompt is
measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.errors import UserError
from laconic.memory import resident_memory
from laconic.runtime.engine.config_file import positions_in
from laconic.runtime.engine.distributions import Logits
from laconic.runtime.engine.engine import GROWTH, Engine, Written
from laconic.runtime.engines import ONNX, OPENVINO, check_runtime
from laconic.runtime.generator import has_cache
from laconic.runtime.graph import FILE_NAMES, exported_bytes
from laconic.runtime.sessions import LOGITS, Session, load_cached

PREDICTED = 128
"""The largest number of positions whose logits are in memory at a time, with a cache."""


class GraphEngine(Engine):
    """An exported model in its runtime, as far as both runtimes are alike."""

    memory = GROWTH

    @classmethod
    def check_installed(cls) -> None:
        check_runtime(cls.name)

    @classmethod
    def find(cls, source: Path) -> Path | None:
        name = FILE_NAMES[cls.name]
        file = source / name if source.is_dir() else source
        return file if file.is_file() and file.suffix == Path(name).suffix else None

    @classmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        """Both run every graph that was exported for them."""

    @classmethod
    def positions(cls, path: Path) -> int | None:
        return positions_in(path.parent)

    @classmethod
    def size(cls, path: Path) -> int:
        return exported_bytes(path.parent)

    @classmethod
    def server(cls, path: Path, port: int, context: int) -> list[str]:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"laconic knows no server for the runtime '{cls.name}'; load '{path.parent}' with its package GenAI, or "
            "serve the model with llama.cpp or vllm."
        )

    def __init__(self, path: Path, context: int) -> None:
        self._before = resident_memory()
        self._path, self._program = path, load_cached(self.name, path)
        self.library, self.has_cache = self._program.version, has_cache(self._program)
        # Nothing of a causal model's answer depends on what comes later.
        first, other = (self._read(self._program.start(), [0, token])[0] for token in (0, 1))
        if not torch.allclose(first, other, rtol=1e-3, atol=1e-3):
            raise self._no_causal_model()
        self.vocabulary = len(first)

    def predict(self, tokens: Sequence[int], start: int) -> Iterator[Logits]:
        # The last token is only predicted.
        end, session = len(tokens) - 1, self._program.start()
        step = PREDICTED if self.has_cache else end
        for first in range(0, end, step):
            logits = self._read(session, tokens[first : min(first + step, end)])
            context = max(0, start - 1 - first)
            if context < len(logits):
                yield Logits(logits[context:])

    def write(self, prompt: Sequence[int], count: int) -> Written:
        assert self.has_cache or count == 1, "a model without a cache writes one token"
        tokens: list[int] = []
        seconds: list[float] = []
        part, session = list(prompt), self._program.start()
        for _ in range(count):
            begun = perf_counter()
            part = [int(self._read(session, part)[-1].argmax())]
            seconds.append(perf_counter() - begun)
            tokens += part
        return Written(tokens, seconds)

    def memory_bytes(self) -> int | None:
        now = resident_memory()
        return None if now is None or self._before is None else now - self._before

    def close(self) -> None:
        del self._program

    def _read(self, session: Session, tokens: Sequence[int]) -> Float[Tensor, "n vocabulary"]:
        """The logits after some tokens, which follow those that the session has read."""
        end = session.length + len(tokens)
        feeds = {
            "input_ids": torch.tensor([list(tokens)]),
            "attention_mask": torch.ones(1, end, dtype=torch.long),
            "position_ids": torch.arange(session.length, end)[None],
        }
        try:
            logits = session.read(feeds)[LOGITS]
        except KeyError as error:
            # It has an input or an output that causal models do not have.
            raise self._no_causal_model() from error
        if logits.dim() != 3 or logits.shape[1] != len(tokens):
            raise self._no_causal_model()
        return logits[0].float()

    def _no_causal_model(self) -> UserError:
        return UserError(
            f"'{self._path}' is no causal language model; evaluate the model that it was exported from, with the "
            f"runtime '{self.name}'."
        )


class OnnxEngine(GraphEngine):
    """A model in ONNX Runtime."""

    name = target = ONNX
    files = f"a folder with {FILE_NAMES[ONNX]}"


class OpenVinoEngine(GraphEngine):
    """A model in OpenVINO."""

    name = target = OPENVINO
    files = f"a folder with {FILE_NAMES[OPENVINO]}"
