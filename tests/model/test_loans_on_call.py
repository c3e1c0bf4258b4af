"""A streamed model computes what the loaded one computes, with each part in memory only while it runs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from laconic.model.loading import load, load_streamed
from laconic.model.loans_checkpoint import CheckpointReader
from laconic.model.loans_on_call import find_parts
from laconic.model.loans_parts import PartReader
from tests.architectures import outputs
from tests.loaned import MODELS, nbytes


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["llama-tied", "bert-masked", "t5", "mixtral"])
def test_a_streamed_model_computes_the_same(tmp_path: Path, name: str, keep: bool) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    lm = load_streamed(str(tmp_path))
    before = nbytes(lm.model)
    with lm.loaned_on_call(keep=keep):
        assert torch.equal(outputs(lm.model), outputs(load(str(tmp_path)).model))
        assert (nbytes(lm.model) > before) == keep
    assert nbytes(lm.model) == before


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_only_the_rows_of_the_tokens_are_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS[name]().bfloat16().save_pretrained(tmp_path / "model")
    lm, loaded = load_streamed(str(tmp_path / "model"), tmp_path / "scratch"), load(str(tmp_path / "model"))
    embedding, other = (one.model.get_input_embeddings() for one in (lm, loaded))
    assert isinstance(embedding, nn.Embedding) and isinstance(other, nn.Embedding)
    table = other.weight
    path = next(path for path, module in lm.model.named_modules() if module is embedding)
    tokens = torch.tensor([[7, 3, 7, 3, 40]])
    whole: list[str] = []
    monkeypatch.setattr(PartReader, "read", lambda _, names: whole.extend(names))
    monkeypatch.setattr(CheckpointReader, "read", lambda _, names: whole.extend(names))
    with lm.loaned_on_call():
        assert torch.equal(embedding(tokens), table[tokens]) and not whole
    monkeypatch.undo()
    with lm.on_loan(path):
        embedding.weight.data = embedding.weight * 2
        lm.write_back(path)
    with lm.loaned_on_call():
        assert torch.equal(embedding(tokens), 2 * table[tokens])
        with lm.on_loan(path):
            assert torch.equal(embedding(tokens), 2 * table[tokens])
        with pytest.raises(IndexError):
            embedding(torch.tensor([[len(table)]]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-tied", "gptj"])
def test_a_head_multiplies_by_some_rows_at_a_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS[name]().bfloat16().save_pretrained(tmp_path)
    lm, loaded = load_streamed(str(tmp_path)), load(str(tmp_path))
    head, other = (one.model.get_output_embeddings() for one in (lm, loaded))
    assert isinstance(head, nn.Linear) and isinstance(other, nn.Linear)
    monkeypatch.setattr("laconic.model.loans_rows.CHUNK", 3 * head.in_features)
    states, before = torch.randn(2, 3, head.in_features), nbytes(lm.model)
    with lm.loaned_on_call():
        monkeypatch.setattr(CheckpointReader, "read", lambda *_: pytest.fail("the matrix is read whole"))
        assert torch.allclose(head(states), other(states), rtol=1e-5, atol=1e-6) and nbytes(lm.model) == before


def test_the_parts_of_a_model_are_its_blocks_and_what_is_on_disk_outside(tmp_path: Path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path)
    lm = load_streamed(str(tmp_path))
    parts = find_parts(lm.model, lm.anatomy, lm.loans)
    assert parts == ["model.layers.0", "model.layers.1", "model.embed_tokens", "lm_head"]
