"""`laconic serve` prints a command that starts a server, and says in one sentence what cannot be served."""

import json
from pathlib import Path
from typing import Any

import pytest

from laconic.api.serve import CONTEXT, serve_command
from laconic.cli.main import status
from laconic.errors import UserError

LENGTH = ("--max-model-len", "64")
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands do not depend on what is installed."""
    monkeypatch.delenv("LACONIC_VLLM", raising=False)
    monkeypatch.setattr("laconic.runtime.engine.llama_cpp.find_spec", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for vLLM."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_llama_cpp(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "a model.gguf").touch()
    assert status(["serve", str(tmp_path), "--runtime", "llama.cpp", "--port", "9001"]) == 0
    printed = capsys.readouterr().out
    assert "llama-server --model" in printed and "a model.gguf' --port 9001 --ctx-size 4096" in printed
    assert "http://127.0.0.1:9001/v1/completions" in printed


def test_vllm(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(["serve", str(folder), "--runtime", "vllm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == ["vllm", "serve", str(folder), "--port", "8000", *LENGTH, "--enforce-eager"]
    assert found["url"] == "http://127.0.0.1:8000" and not found["is_installed"]
    monkeypatch.setenv("LACONIC_VLLM", "/opt/engine/bin/python")
    named = serve_command(folder, "vllm", context=16).command
    assert named[:3] == ["/opt/engine/bin/python", "-m", "vllm.entrypoints.openai.api_server"]


def test_a_model_that_does_not_say_its_context(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    assert serve_command(folder, "vllm").context == CONTEXT


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "lama.cpp"], "`laconic serve` has no runtime 'lama.cpp': did you mean 'llama.cpp'?"),
        (["--runtime", "llama.cpp"], "export it first: laconic export"),
        (["--runtime", "vllm", "--port", "0"], "--port must be from 1 to 65535; got 0"),
        (["--runtime", "vllm", "--context", "65"], "--context must be from 1 to 64 tokens"),
    ],
)
def test_what_cannot_be_served(folder: Path, options: list[str], sentence: str, capsys: Output) -> None:
    assert status(["serve", str(folder), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_port_that_is_no_number(folder: Path) -> None:
    port: Any = "80"
    with pytest.raises(UserError, match="port must be a whole number; got '80'"):
        serve_command(folder, "vllm", port=port)


def test_nothing_at_the_path(tmp_path: Path, capsys: Output) -> None:
    assert status(["serve", str(tmp_path / "nowhere"), "--runtime", "vllm"]) == 2
    assert "There is no file or folder" in capsys.readouterr().err


def test_several_files(tmp_path: Path, capsys: Output) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert status(["serve", str(tmp_path), "--runtime", "llama.cpp"]) == 2
    assert "has several GGUF files, a.gguf and b.gguf; name one of them" in capsys.readouterr().err
