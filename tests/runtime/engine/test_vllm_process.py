"""The process of vLLM, with other scripts as its worker: it ends with the engine; an early end is one sentence."""

import sys
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.runtime.engine import vllm
from laconic.runtime.engine.vllm import VARIABLE, Vllm

LOADED = """print('ANSWER {"library": "vllm 0", "vocabulary": 5}', flush=True)"""


def engine(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Vllm:
    """An engine whose process runs these lines."""
    script = folder / "worker.py"
    script.write_text("\n".join(lines))
    monkeypatch.setattr(vllm, "WORKER", script)
    monkeypatch.setenv(VARIABLE, sys.executable)
    return Vllm(folder, 8)


def test_the_process_ends_with_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engine(tmp_path, monkeypatch, "import sys", LOADED, "for line in sys.stdin: pass")
    assert loaded.version == "vllm 0, enforce_eager" and loaded.vocabulary == 5
    assert loaded._process.poll() is None
    loaded.close()
    assert loaded._process.returncode is not None


def test_a_process_that_ended_between_two_questions_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine(tmp_path, monkeypatch, LOADED, "raise MemoryError('no room for the cache')")
    loaded._process.wait()
    with pytest.raises(UserError, match=r"^vLLM cannot run '.*': MemoryError: no room for the cache\.$"):
        loaded.write([1, 2], 3)
    loaded.close()


def test_a_process_that_cannot_load_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^vLLM cannot run '.*': ValueError: no such architecture\.$"):
        engine(tmp_path, monkeypatch, "raise ValueError('no such architecture')")


def test_the_reason_of_a_validation_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "pydantic.ValidationError: 1 validation error for ModelConfig\n  Value error, no such quantization."
    with pytest.raises(UserError, match=r"^vLLM cannot run '.*': Value error, no such quantization\.$"):
        engine(tmp_path, monkeypatch, f"raise SystemExit({message!r})")
