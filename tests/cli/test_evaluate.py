"""`laconic evaluate` where there is no task for the model: its cost alone, and its distance to an original."""

import json
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.store import save
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer
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
