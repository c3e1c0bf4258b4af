"""`laconic evaluate` where there is no task for the model: its cost alone, and its distance to an original."""

import json
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.store import save
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.models import with_tokenizer
from tests.tokens import letters
from tests.unread import spoil

Output = pytest.CaptureFixture[str]


@pytest.fixture
def masked(tmp_path: Path) -> tuple[str, str]:
    """A masked model, and what is left of it."""
    save(with_tokenizer("bert-masked"), tmp_path / "original")
    save(compress_everything(with_tokenizer("bert-masked"), rank=4), tmp_path / "small")
    return str(tmp_path / "original"), str(tmp_path / "small")


def test_a_masked_model_is_compared_with_its_original(capsys: Output, masked: tuple[str, str], texts: Path) -> None:
    original, small = masked
    named = ["evaluate", small, "--against", original, "--tasks", f"fidelity:{texts}"]
    assert status([*named, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fidelity"]["kl"] > 0 and found["fidelity"]["source"] == str(texts)
    assert found["cost"]["bytes"] < found["original"]["cost"]["bytes"]
    assert status(named) == 0
    printed = capsys.readouterr().out
    assert "Distance to the original" in printed and "Quality" not in printed


def test_the_cost_alone(capsys: Output, masked: tuple[str, str]) -> None:
    assert status(["evaluate", masked[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["parameters"] > 0


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("fidelity:builtin:pydoc", "'fidelity:builtin:pydoc' needs an original to compare with"),
        ("perplexity:builtin:pydoc", "is a masked model"),
    ],
)
def test_what_cannot_be_asked_is_named_before_weights_are_read(
    capsys: Output, masked: tuple[str, str], task: str, sentence: str
) -> None:
    spoil(Path(masked[0]))
    # Saving the models has shown its progress.
    capsys.readouterr()
    assert status(["evaluate", masked[0], "--tasks", task]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("name", "method"), [("llama-tied", "dynamic-int8"), ("bert-masked", "rtn:bits=4")])
def test_a_model_with_everything_compressed_is_judged_and_looked_at(
    capsys: Output, texts: Path, tmp_path: Path, method: str, name: str
) -> None:
    original, made = tmp_path / "original", tmp_path / "made"
    BY_NAME[name].lm().model.save_pretrained(original)
    letters("start" if name == "llama-tied" else "pair").save_pretrained(original)
    assert status(["compress", str(original), "--method", method, "--targets", "all", "-o", str(made)]) == 0
    capsys.readouterr()
    command = ["evaluate", str(made), "--against", str(original), "--batch", "1", "--length", "4", "--json"]
    assert status(command) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["bytes"] < (original / "model.safetensors").stat().st_size
    assert status(["inspect", str(made), "--data", str(texts), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["activity"]["rows"] > 0
