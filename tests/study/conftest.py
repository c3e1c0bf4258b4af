"""A small study of a tiny model on a data set of a few sentences."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.architectures import BY_NAME
from tests.conftest import SENTENCES
from tests.study.forked import Forked, end_server


@pytest.fixture
def little_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with SST-2 of the sentences that the tiny model has words for."""
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for split, shift in (("train", 0), ("dev", 1)):
        lines = [f"{sentence}\t{(number + shift) % 2}" for number, sentence in enumerate(SENTENCES * 2)]
        lines = [line.replace("the ", "the the ") for line in lines] if split == "dev" else lines
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="session")
def two_classes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of two classes, as SST-2 has."""
    folder = tmp_path_factory.mktemp("models") / "two"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_model, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def little_study(two_classes: Path, little_data: Path) -> dict[str, Any]:
    """Two methods at two sizes and two seeds, beside the original."""
    return {
        "axes": {
            "model": [str(two_classes)],
            "method": ["svd", "kfac-svd"],
            "keep": [0.5, 0.75],
            "seed": [0, 1],
        },
        "data": "glue/sst2",
        "samples": 4,
        "tasks": ["glue/sst2"],
    }


@pytest.fixture
def streamed_study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """One method on a tiny language model, which is read block by block."""
    folder = tmp_path_factory.mktemp("models") / "words"
    BY_NAME["gpt2"].model().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    texts, judged = folder.parent / "texts.txt", folder.parent / "judged.txt"
    texts.write_text("\n".join(SENTENCES * 2))
    judged.write_text("\n".join(sentence.replace("the ", "the the ") for sentence in SENTENCES))
    return {
        "axes": {"model": [str(folder)], "method": ["gptq:bits=4"]},
        "data": str(texts),
        "samples": 4,
        "tasks": [f"perplexity:{judged}"],
        "stream": True,
    }


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a study are forked. `tests/cli/test_program.py` starts them as a user does."""
    monkeypatch.setattr(import_module("laconic.study.executors"), "get_context", lambda method: Forked())


@pytest.fixture(scope="session", autouse=True)
def server_ends() -> Iterator[None]:
    """The process that is forked ends with the session."""
    yield
    end_server()
