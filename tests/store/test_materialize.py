"""The way back to a plain model: the same function, the stock class, and a checkpoint that needs no laconic."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import laconic
from laconic.errors import UserError
from laconic.formats import Dense, Format, LowRank
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


@pytest.mark.parametrize(
    ("layer", "switches"), [("mlp.down_proj", {"mlp_bias"}), ("self_attn.q_proj", {"attention_bias"})]
)
def test_a_switch_of_the_configuration_makes_room_for_a_bias(layer: str, switches: set[str], tmp_path: Path) -> None:
    """A Llama has no biases by default; the layers that get one along with the changed layer have zeros."""
    lm = BY_NAME["llama"].lm()
    (site,) = [site for site in lm.sites(("all",)) if site.name == f"model.layers.1.{layer}"]
    bias = torch.randn(site.shape[0], generator=torch.Generator().manual_seed(0))
    lm.replace(site, factors(site, rank=4), bias)
    dense = check(lm.model, tmp_path / "dense")
    on = {name for name in ("mlp_bias", "attention_bias") if getattr(dense.config, name)}
    assert on == switches and not lm.model.config.mlp_bias and not lm.model.config.attention_bias
    biases = {name: part for name, part in dense.named_parameters() if name.endswith("proj.bias")}
    assert torch.equal(biases.pop(f"model.layers.1.{layer}.bias"), bias)
    assert biases and not any(bool(part.any()) for part in biases.values())


def test_a_bias_without_a_switch_is_said() -> None:
    lm = BY_NAME["mistral"].lm()
    site = lm.sites()[0]
    lm.replace(site, factors(site, rank=4), torch.ones(site.shape[0]))
    with pytest.raises(UserError, match=f"'{site.name}' has a bias and its class has none there, so no stock model"):
        materialize(lm.model)


def test_what_a_switch_can_hold_is_saved_as_a_stock_checkpoint(tmp_path: Path) -> None:
    """Whatever else is compressed keeps its format; the model in memory stays as it is."""
    lm = BY_NAME["llama"].lm()
    site = next(site for site in lm.sites(("ffn",)) if site.name.endswith("down_proj"))
    lm.replace(site, Dense.from_weight(site.weight()), torch.ones(site.shape[0]))
    before = outputs(lm.model)
    save(lm, tmp_path / "stock")
    assert isinstance(lm.model.get_submodule(site.name), Dense) and not lm.model.config.mlp_bias
    again = type(lm.model).from_pretrained(tmp_path / "stock")
    assert "quantization_config" not in json.loads((tmp_path / "stock/config.json").read_text())
    assert alike(outputs(again), before)
    other = next(site for site in lm.sites(("ffn",)) if site.name.endswith("gate_proj"))
    lm.replace(other, factors(other, rank=4))
    before = outputs(lm.model)
    save(lm, tmp_path / "mixed")
    again = type(lm.model).from_pretrained(tmp_path / "mixed")
    assert [type(part) for part in again.modules() if isinstance(part, Format)] == [LowRank]
    assert alike(outputs(again), before)
