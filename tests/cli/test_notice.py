"""The notice about an unknown architecture is one line on stderr, and the verb goes on."""

import json
import shutil
from pathlib import Path

import pytest

from laconic.cli.main import status
from tests.architectures import Architecture
from tests.tiny_models import ENCODER, SMALL


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """An ERNIE with the tokenizer of the tiny model."""
    from transformers import ErnieConfig, ErnieForSequenceClassification

    folder = tmp_path / "ernie"
    Architecture(
        "ernie", lambda: ErnieForSequenceClassification(ErnieConfig(**ENCODER, **SMALL))
    ).model().save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_compress_says_what_it_found(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "svd", "--keep", "0.5", "--json"]
    assert status(["compress", str(model), *options, "-o", str(tmp_path / "small")]) == 0
    said = capsys.readouterr()
    notices = [line for line in said.err.splitlines() if "found by structure" in line]
    assert notices == [
        "The architecture 'ernie' has no entry in laconic.model.anatomy; found by structure: 6 linears in each block "
        "of ernie.encoder.layer, each assumed to have its own input."
    ]
    assert len(json.loads(said.out)["sites"]) == 12
    # What was compressed is inspected the same way.
    assert status(["inspect", str(tmp_path / "small"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stacks"] == [{"path": "ernie.encoder.layer", "blocks": 2}]
