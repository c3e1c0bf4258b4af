"""llama.cpp in this process, through the package `llama-cpp-python` (its module is `llama_cpp`).

Only functions of llama.cpp's own C interface are used. The class `Llama` of the package copies the logits of all
positions into one array as long as the context.
"""

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.errors import UserError, install
from laconic.memory import resident_memory
from laconic.runtime.engine.distributions import Logits
from laconic.runtime.engine.engine import GROWTH, Engine, Written
from laconic.runtime.engine.gguf_header import read_architecture

BATCH = 512
"""The largest number of tokens that are computed together; llama.cpp's own default."""
PREDICTED = 128
"""The largest number of positions whose logits are in memory at a time."""
SERVER = "llama-server"
ERROR_LEVEL = 3
"""The level of errors in llama.cpp's messages."""
SUFFIX = ".gguf"
ENCODER_DECODER = "t5"
"""The only architecture of llama.cpp with an encoder and a decoder."""


@cache
def _library() -> tuple[Any, list[str], Any]:
    """The module, the errors that llama.cpp has written, and the function that collects them, which must stay alive."""
    module: Any = import_module("llama_cpp")
    errors: list[str] = []

    def collect(level: int, text: bytes, _: Any) -> None:
        if level == ERROR_LEVEL:
            errors.append(text.decode(errors="replace").strip())

    callback = module.llama_log_callback(collect)
    module.llama_log_set(callback, ctypes.c_void_p(0))
    module.llama_backend_init()
    return module, errors, callback


class LlamaCpp(Engine):
    """A GGUF file in llama.cpp on the CPU."""

    name = "llama.cpp"
    target = "gguf"
    files = "a GGUF file, or a folder with one"
    memory = GROWTH
    has_cache = True

    @classmethod
    def check_installed(cls) -> None:
        if find_spec("llama_cpp") is None:
            raise UserError(
                f"The runtime '{cls.name}' needs llama-cpp-python, not installed here: {install('llama-cpp')}."
            )

    @classmethod
    def find(cls, source: Path) -> Path | None:
        files = [source] if source.is_file() else sorted(source.glob(f"*{SUFFIX}"))
        found = [file for file in files if file.suffix == SUFFIX]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise UserError(f"The folder '{source}' has several GGUF files, {names}; name one of them.")
        if found and read_architecture(found[0]) == ENCODER_DECODER:
            raise UserError(
                f"'{found[0]}' holds an encoder-decoder, whose encoder neither {SERVER} nor the runtime '{cls.name}' "
                "runs; run it with llama-completion -m, or evaluate the model that it was made from in torch."
            )
        return found[0] if found else None

    @classmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        """llama.cpp runs every model that a GGUF file holds."""

    @classmethod
    def positions(cls, path: Path) -> int | None:
        """As `Engine.positions`; None as well if llama-cpp-python is not installed."""
        if find_spec("llama_cpp") is None:
            return None
        llama, errors, _ = _library()
        settings = llama.llama_model_default_params()
        settings.vocab_only = True
        model = _loaded(llama, errors, path, settings)
        try:
            return int(llama.llama_model_n_ctx_train(model)) or None
        finally:
            llama.llama_model_free(model)

    @classmethod
    def size(cls, path: Path) -> int:
        return path.stat().st_size

    @classmethod
    def server(cls, path: Path, port: int, context: int) -> list[str]:
        """`llama-server` of llama.cpp; without it the server of llama-cpp-python, if that is installed."""
        threads = str(torch.get_num_threads())
        model = ["--model", str(path), "--port", str(port)]
        if which(SERVER) is None and find_spec("llama_cpp") is not None:
            return [sys.executable, "-m", "llama_cpp.server", *model, "--n_ctx", str(context), "--n_threads", threads]
        return [SERVER, *model, "--ctx-size", str(context), "--threads", threads]

    def __init__(self, path: Path, context: int) -> None:
        self._llama, errors, _ = _library()
        llama = self._llama
        self.version = f"llama-cpp-python {llama.__version__}"
        self._before = resident_memory()
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = _loaded(llama, errors, path, settings)
        self.vocabulary = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
        shape = llama.llama_context_default_params()
        shape.n_ctx, shape.n_batch, shape.n_ubatch, shape.n_seq_max = context, BATCH, BATCH, 1
        shape.n_threads = shape.n_threads_batch = torch.get_num_threads()
        self._context = llama.llama_init_from_model(self._model, shape)
        if not self._context:
            llama.llama_model_free(self._model)
            raise UserError(f"llama.cpp cannot run '{path}' with {context} tokens: {_reason(errors)}.")
        self._batch = llama.llama_batch_init(BATCH, 0, 1)

    def predict(self, tokens: Sequence[int], start: int) -> Iterator[Logits]:
        self._clear()
        # The last token is only predicted.
        position, end = 0, len(tokens) - 1
        while position < end:
            # The first tokens need no logits.
            is_context = position < start - 1
            stop = min(start - 1, position + BATCH) if is_context else min(end, position + PREDICTED)
            logits = self._decode(tokens[position:stop], position, 0 if is_context else stop - position)
            if not is_context:
                yield Logits(logits)
            position = stop

    def write(self, prompt: Sequence[int], count: int) -> Written:
        self._clear()
        tokens: list[int] = []
        seconds: list[float] = []
        parts = [prompt[first : first + BATCH] for first in range(0, len(prompt), BATCH)]
        begun = perf_counter()
        for number, part in enumerate(parts[:-1]):
            self._decode(part, BATCH * number, 0)
        logits = self._decode(parts[-1], BATCH * (len(parts) - 1), 1)
        while True:
            tokens.append(int(logits[-1].argmax()))
            ended = perf_counter()
            seconds.append(ended - begun)
            if len(tokens) == count:
                return Written(tokens, seconds)
            begun = ended
            logits = self._decode(tokens[-1:], len(prompt) + len(tokens) - 1, 1)

    def memory_bytes(self) -> int | None:
        now = resident_memory()
        return None if now is None or self._before is None else now - self._before

    def close(self) -> None:
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _clear(self) -> None:
        """Forget all tokens."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def _decode(self, tokens: Sequence[int], position: int, last: int) -> Float[Tensor, "last vocabulary"]:
        """Run the model on tokens that follow the cached ones.

        Args:
            tokens: the tokens.
            position: the number of cached tokens.
            last: the number of positions at the end whose logits are returned.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= len(tokens) - last
        status = self._llama.llama_decode(self._context, batch)
        if status != 0:
            raise UserError(f"llama.cpp cannot run {len(tokens)} tokens at position {position}: status {status}.")
        if not last:
            return torch.empty(0, self.vocabulary)
        values = np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), shape=(last, self.vocabulary))
        # The memory is llama.cpp's own, which the next call overwrites.
        return torch.from_numpy(values.copy())


def _loaded(llama: Any, errors: list[str], path: Path, settings: Any) -> Any:
    """The model in a file."""
    errors.clear()
    model = llama.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise UserError(f"llama.cpp cannot load '{path}': {_reason(errors)}.")
    return model


def _reason(errors: Sequence[str]) -> str:
    """The first error that llama.cpp has written."""
    return errors[0].rstrip(".") if errors else "it says no reason"
