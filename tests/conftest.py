"""Fixtures for all tests: the real models and data, if they are there."""

import os
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# Read when transformers and datasets are imported, so they are set before anything is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "agg")
# What is kept between runs is of one run of the tests, and nothing of the user's.
os.environ["LACONIC_CACHE"] = tempfile.mkdtemp(prefix="laconic-tests-")

import pytest
import torch

from tests.fresh_python import end_fresh
from tests.pair import Pair
from tests.store.readers import end_readers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side, one a core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; `LACONIC_DATA`, or the one beside the repository."""
    folder = Path(os.environ.get("LACONIC_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LACONIC_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def shared_models(shared_data: Path) -> Path:
    """The folder of real models, beside the data."""
    folder = shared_data.parent / "models"
    if not folder.is_dir():
        pytest.skip(f"no real models at {folder}")
    return folder


def keep_three_blocks(model: "PreTrainedModel") -> "PreTrainedModel":
    """The encoder without the other blocks: commands and snippets meet the same kinds of layers, and fewer."""
    encoder = model.base_model.encoder
    encoder.layer = encoder.layer[:3]
    model.config.num_hidden_layers = 3
    return model


@pytest.fixture(scope="session")
def shallow_model(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """minilm-sst2 with three of its six blocks."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, real = tmp_path_factory.mktemp("models") / "minilm-sst2", shared_models / "minilm-sst2"
    keep_three_blocks(AutoModelForSequenceClassification.from_pretrained(real)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def brief_timing() -> Iterator[None]:
    """The speed of a model is measured in two passes instead of thirty: what tests look at is not the figure."""
    timing = import_module("laconic.evaluate.timing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MAX_SECONDS", 0.0)
        patch.setattr(timing, "MIN_RUNS", 2)
        patch.setattr(timing, "WARM_UP_RUNS", 1)
        yield


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes that form a group."""
    pair = Pair(tmp_path_factory.mktemp("meeting") / "store")
    yield pair
    pair.end()


@pytest.fixture(scope="session", autouse=True)
def processes_end() -> Iterator[None]:
    """Processes that serve many tests end with the session."""
    yield
    end_readers()
    end_fresh()


SENTENCES = tuple(f"the {noun} is {quality}" for noun in ("cat", "dog", "house") for quality in ("good", "bad", "old"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random classifier and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.architectures import BY_NAME

    words = dict.fromkeys(("[PAD]", "[UNK]", *(word for sentence in SENTENCES for word in sentence.split())))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    BY_NAME["bert-classifier"].lm().model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that the tiny model has words for."""
    file = tmp_path_factory.mktemp("data") / "texts.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    return file
