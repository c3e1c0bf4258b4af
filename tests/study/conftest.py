"""A small study of a tiny model on a data set of nine sentences."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SENTENCES


@pytest.fixture
def little_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with SST-2 of the sentences that the tiny model has words for."""
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for split, shift in (("train", 0), ("dev", 1)):
        lines = [f"{sentence}\t{(number + shift) % 2}" for number, sentence in enumerate(SENTENCES)]
        lines = [line.replace("the ", "the the ") for line in lines] if split == "dev" else lines
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def little_study(tiny_model: Path, little_data: Path) -> dict[str, Any]:
    """Two methods at two sizes and two seeds, beside the original."""
    return {
        "axes": {
            "model": [str(tiny_model)],
            "method": ["svd", "kfac-svd"],
            "keep": [0.5, 0.75],
            "seed": [0, 1],
        },
        "data": "glue/sst2",
        "samples": 4,
        "tasks": ["glue/sst2"],
    }
