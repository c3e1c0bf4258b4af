"""A streamed model has every tensor of the loaded one while it is on loan, and few when nothing is."""

import json
from pathlib import Path

import pytest

from laconic.model import LanguageModel
from laconic.model.loading import load, load_streamed
from laconic.model.loans_skeleton import embedding_paths, head_paths
from tests.architectures import BY_NAME
from tests.loaned import MODELS, assert_equal, nbytes

QUICK = ("llama-tied", "bert-masked", "t5", "albert-groups", "gpt2", "mixtral", "llava")


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_every_tensor_on_loan_is_that_of_the_loaded_model(tmp_path: Path, name: str) -> None:
    MODELS[name]().bfloat16().save_pretrained(tmp_path)
    whole, lm = load(str(tmp_path)), load_streamed(str(tmp_path))
    assert (lm.dtype, lm.task, lm.source, lm.model.training) == (whole.dtype, whole.task, whole.source, False)
    assert lm.model.config.to_dict() == whole.model.config.to_dict()
    assert lm.model.all_tied_weights_keys == whole.model.all_tied_weights_keys
    before = nbytes(lm.model)
    largest = max(_block_nbytes(whole))
    with lm.on_loan(""):
        assert_equal(lm.model, whole.model)
    assert nbytes(lm.model) == before
    for _, blocks in lm.stacks():
        for path, block in blocks:
            with lm.on_loan(path):
                assert not any(tensor.is_meta for tensor in block.state_dict().values())
                assert nbytes(lm.model) <= before + largest
    assert nbytes(lm.model) == before


def _block_nbytes(lm: LanguageModel) -> list[int]:
    return [nbytes(block) for _, blocks in lm.stacks() for _, block in blocks]


def test_a_pooler_that_the_file_lacks_is_the_same_random_one(tmp_path: Path) -> None:
    BY_NAME["bert-masked"].model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    whole, lm = load(str(tmp_path)), load_streamed(str(tmp_path))
    with lm.on_loan(""):
        assert_equal(lm.model, whole.model)


@pytest.mark.parametrize(
    ("name", "embeddings", "heads"),
    [
        ("llama", ["model.embed_tokens"], ["lm_head"]),
        ("bert-masked", ["bert.embeddings.word_embeddings"], ["cls.predictions.decoder"]),
        ("bert-classifier", ["bert.embeddings.word_embeddings"], []),
        ("t5", ["shared", "encoder.embed_tokens", "decoder.embed_tokens"], ["lm_head"]),
    ],
)
def test_embeddings_and_heads_are_found(name: str, embeddings: list[str], heads: list[str]) -> None:
    lm = BY_NAME[name].lm()
    assert embedding_paths(lm.model, lm.anatomy) == embeddings
    assert head_paths(lm.model, lm.anatomy) == heads
