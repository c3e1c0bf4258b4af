"""Models that write text, exported to ONNX Runtime or OpenVINO, with the cache of keys and values if they have one.

A model without a cache reads a whole text at every call. It predicts tokens, and only the time of the prompt is
measured. An encoder-decoder writes after a source; its tasks run on `laconic.runtime.exported`.
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
from laconic.runtime.generator import Generator, has_cache
from laconic.runtime.graph import FILE_NAMES, exported_bytes
from laconic.runtime.sessions import load_cached
from laconic.runtime.written import DECODER_FILES

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
        name, decoder = FILE_NAMES[cls.name], DECODER_FILES[cls.name]
        if source.is_dir():
            return next((source / file for file in (name, decoder) if (source / file).is_file()), None)
        return source if source.is_file() and source.suffix == Path(name).suffix else None

    @classmethod
    def reads_source(cls, path: Path) -> bool:
        """Whether a model is an encoder-decoder.

        Args:
            path: the result of `find`.
        """
        return path.name == DECODER_FILES[cls.name]

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
            f"laconic knows no server for the runtime '{cls.name}', whose package GenAI loads an exported folder in "
            "Python; for HTTP export the model to gguf and serve it with --runtime llama.cpp, or to compressed-tensors "
            "and serve it with --runtime vllm."
        )

    def __init__(self, path: Path, context: int) -> None:
        self._before, self._path = resident_memory(), path
        if self.reads_source(path):
            self.generator, self.has_cache = Generator.open(path.parent), True
            self.vocabulary = self.generator.prefill(torch.zeros(1, 2, dtype=torch.long)).shape[-1]
        else:
            program = load_cached(self.name, path)
            self.generator, self.has_cache = Generator(program), has_cache(program)
            self.vocabulary = self._check_causal()
        self.version = self.generator.version

    def _check_causal(self) -> int:
        """The size of the vocabulary, after a check that nothing of an answer depends on what comes later."""
        answers: list[Tensor] = []
        for token in (0, 1):
            self.generator.begin()
            answers.append(self._read([0, token])[0])
        first, other = answers
        if not torch.allclose(first, other, rtol=1e-3, atol=1e-3):
            raise self._no_causal_model()
        return len(first)

    def predict(self, tokens: Sequence[int], start: int) -> Iterator[Logits]:
        # The last token is only predicted.
        end = len(tokens) - 1
        step = PREDICTED if self.has_cache else end
        self.generator.begin()
        for first in range(0, end, step):
            logits = self._read(tokens[first : min(first + step, end)])
            context = max(0, start - 1 - first)
            if context < len(logits):
                yield Logits(logits[context:])

    def write(self, prompt: Sequence[int], count: int) -> Written:
        assert self.has_cache or count == 1, "a model without a cache writes one token"
        tokens: list[int] = []
        seconds: list[float] = []
        for _ in range(count):
            begun = perf_counter()
            if not tokens:
                logits = self.generator.prefill(torch.tensor([list(prompt)]))
            else:
                logits = self.generator.step(torch.tensor(tokens[-1:]))
            tokens.append(int(logits[0].argmax()))
            seconds.append(perf_counter() - begun)
        return Written(tokens, seconds)

    def memory_bytes(self) -> int | None:
        now = resident_memory()
        return None if now is None or self._before is None else now - self._before

    def close(self) -> None:
        del self.generator

    def _read(self, tokens: Sequence[int]) -> Float[Tensor, "n vocabulary"]:
        """The logits after some tokens, which follow those that were read."""
        try:
            logits = self.generator.read(torch.tensor([list(tokens)]))
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
    files = f"a folder with {FILE_NAMES[ONNX]} or {DECODER_FILES[ONNX]}"


class OpenVinoEngine(GraphEngine):
    """A model in OpenVINO."""

    name = target = OPENVINO
    files = f"a folder with {FILE_NAMES[OPENVINO]} or {DECODER_FILES[OPENVINO]}"
