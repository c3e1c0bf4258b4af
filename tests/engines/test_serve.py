"""The command that `laconic serve` prints serves the model, and answers a question over HTTP."""

import json
import os
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch

from laconic.api.serve import ServeResult, serve_command
from laconic.export import export
from laconic.runtime.engine.vllm import VARIABLE
from laconic.store import save
from tests.export.gguf.models import byte_level, model
from tests.export.served_models import compressed

pytestmark = pytest.mark.engines
SECONDS = 400
"""The time within which a server must be up: on a busy machine vLLM takes minutes."""
TOKENS = 4
SHARED = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""For a machine that does other work as well: without a size of its cache, vLLM takes nearly all memory or stops."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def ask(url: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of a server to a question; without one, to a GET."""
    body = None if question is None else json.dumps(question).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def answer_of(served: ServeResult, question: dict[str, Any], log: Path, **variables: str) -> dict[str, Any]:
    """Start the server, wait until it is up, ask it, and end it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    with log.open("w") as messages:
        process = subprocess.Popen(served.command, stdout=messages, stderr=messages, env=environment)
    try:
        end = time.monotonic() + SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            try:
                name = ask(f"{served.url}/v1/models")["data"][0]["id"]
                break
            except (URLError, ConnectionError):
                time.sleep(0.5)
        return ask(f"{served.url}/v1/completions", {"model": name, "max_tokens": TOKENS, "temperature": 0, **question})
    finally:
        process.terminate()
        process.wait()


def test_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if which("llama-server") is None and (find_spec("llama_cpp") is None or find_spec("sse_starlette") is None):
        pytest.skip("neither llama-server nor llama-cpp-python[server] is installed")
    lm = model("llama")
    lm = type(lm).of(lm.model, byte_level())
    export(lm, "gguf", tmp_path / "out")
    served = serve_command(tmp_path / "out", "llama.cpp", port=free_port())
    path = os.environ.get("PYTHONPATH", "")
    found = answer_of(served, {"prompt": "the cat"}, tmp_path / "log", PYTHONPATH=path)
    assert found["usage"]["completion_tokens"] >= 1 and isinstance(found["choices"][0]["text"], str)


def test_vllm(tmp_path: Path) -> None:
    """It writes as many tokens as were asked for, after a prompt of tokens."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} does not name the Python of vLLM's environment")
    lm = compressed("llama", dtype=torch.bfloat16)
    save(lm, tmp_path / "out")
    served = serve_command(tmp_path / "out", "vllm", port=free_port(), context=32)
    found = answer_of(
        served, {"prompt": [5, 6, 7], "return_tokens_as_token_ids": True, "logprobs": 0}, tmp_path / "log", **SHARED
    )
    assert found["usage"] == {**found["usage"], "prompt_tokens": 3, "completion_tokens": TOKENS}
