"""The way back to a plain model: the same function, the stock class, and a checkpoint that needs no laconic."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import laconic
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.store import materialize, save
from tests.architectures import ARCHITECTURES, BY_NAME, Architecture, alike, compress_everything, factors, outputs
from tests.store.checkpoints import TIED

assert laconic


def check(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Materialize, compare, save by transformers, reload by transformers, compare."""
    before = outputs(model)
    dense = materialize(model)
    assert type(dense) is type(model)
    assert not any(isinstance(module, Format) for module in dense.modules())
    torch.testing.assert_close(outputs(dense), before, rtol=1e-4, atol=1e-5)
    assert alike(outputs(model), before)
    dense.save_pretrained(folder)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    again, loading = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert alike(outputs(again), outputs(dense))
    return dense


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_everything_compressed(architecture: Architecture, tmp_path: Path) -> None:
    check(compress_everything(architecture.lm(), rank=4).model, tmp_path)


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("target", ["attention", "head", "embedding"])
def test_ties(name: str, target: str, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    for site in lm.sites((target,)):
        lm.replace(site, factors(site, rank=4))
    dense = check(lm.model, tmp_path)
    stock = BY_NAME[name].model()
    if target == "attention":
        assert dense.all_tied_weights_keys == stock.all_tied_weights_keys
        assert dense.config.tie_word_embeddings
    else:
        head, embedding = dense.get_output_embeddings(), dense.get_input_embeddings()
        assert not torch.equal(head.weight, embedding.weight)


def test_nested_and_reloaded(tmp_path: Path) -> None:
    lm = compress_everything(BY_NAME["gpt2"].lm(), rank=8)
    for site in lm.sites(("blocks",)):
        lm.replace(site, factors(site, rank=2))
    check(lm.model, tmp_path / "dense")
    save(lm, tmp_path / "out")
    again = type(lm.model).from_pretrained(tmp_path / "out")
    check(again, tmp_path / "again")


def test_full_rank_gives_back_the_matrices() -> None:
    original = BY_NAME["bart-scaled"].model()
    dense = materialize(compress_everything(BY_NAME["bart-scaled"].lm()).model)
    for name, weight in original.named_parameters():
        torch.testing.assert_close(dense.get_parameter(name), weight, rtol=1e-4, atol=1e-5)


def test_nothing_of_laconic_is_left(tmp_path: Path) -> None:
    save(compress_everything(BY_NAME["llama"].lm(), rank=4), tmp_path / "out")
    model = type(BY_NAME["llama"].model()).from_pretrained(tmp_path / "out")
    dense = materialize(model)
    assert getattr(dense, "hf_quantizer", None) is None
    assert "quantization_config" not in dense.config.to_dict()
    assert model.hf_quantizer is not None


def test_dequantize_of_transformers(tmp_path: Path) -> None:
    lm = compress_everything(BY_NAME["qwen3"].lm(), rank=4)
    save(lm, tmp_path / "out")
    model = type(lm.model).from_pretrained(tmp_path / "out")
    plain = model.dequantize()
    assert isinstance(plain.model.layers[0].mlp.up_proj, nn.Linear)
    torch.testing.assert_close(outputs(plain), outputs(lm.model), rtol=1e-4, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    assert alike(outputs(type(plain).from_pretrained(tmp_path / "plain")), outputs(plain))


def test_dense_model_is_copied() -> None:
    lm = LanguageModel.of(BY_NAME["mistral"].model())
    dense = materialize(lm.model)
    assert dense is not lm.model
    assert alike(outputs(dense), outputs(lm.model))
