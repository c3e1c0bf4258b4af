"""What can be compressed is found, in forward order, as (out, in), whatever holds it."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.model import Group, LanguageModel, Site
from tests.architectures import (
    ARCHITECTURES,
    BLOCKS,
    BY_NAME,
    INNER,
    VOCABULARY,
    WIDTH,
    Architecture,
    batch_for,
    compress_everything,
    factors,
)

# Linears of attention and of the feed-forward in one block, and outside the blocks.
COUNTS = {
    "bert-classifier": (4, 2, 2),  # the pooler and the classifier
    "bert-masked": (4, 2, 2),  # the transform and the decoder
    "bert-masked-untied": (4, 2, 2),
    "bert-base": (4, 2, 1),
    "roberta-masked": (4, 2, 2),
    "distilbert-masked": (4, 2, 2),
    "distilbert-classifier": (4, 2, 2),
    "gpt2": (2, 2, 1),
    "gpt2-untied": (2, 2, 1),
    "llama": (4, 3, 1),
    "llama-tied": (4, 3, 1),
    "mistral": (4, 3, 1),
    "qwen2": (4, 3, 1),
    "qwen3": (4, 3, 1),
    "t5": (4 + 8, 2 + 2, 1),
    "t5-gated": (4 + 8, 3 + 3, 1),
    "bart": (4 + 8, 2 + 2, 1),
    "bart-untied": (4 + 8, 2 + 2, 1),
    "bart-scaled": (4 + 8, 2 + 2, 1),
}


def names(lm: LanguageModel, *targets: str) -> list[str]:
    return [site.name for site in lm.sites(targets)]


def inputs_of(lm: LanguageModel, sites: list[Site]) -> dict[str, torch.Tensor]:
    """What each site reads when the model runs a batch."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        return lambda _, args: seen.__setitem__(name, args[0].detach().clone())

    handles = [site.module.register_forward_pre_hook(keep(site.name)) for site in sites]  # type: ignore[arg-type]
    with torch.no_grad():
        lm.model(**batch_for(lm.model))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_every_linear_is_one_site(architecture: Architecture) -> None:
    lm = architecture.lm()
    attention, ffn, head = COUNTS[architecture.name]
    every = lm.sites(("*",))
    by_group = {group: [site for site in every if site.group == group] for group in Group}
    assert len(by_group[Group.ATTENTION]) == attention * BLOCKS
    assert len(by_group[Group.FFN]) == ffn * BLOCKS
    assert len(by_group[Group.HEAD]) == head
    # BART's two stacks have a table each once nothing is tied.
    assert len(by_group[Group.EMBEDDING]) == (2 if architecture.name == "bart-untied" else 1)
    linears = [name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    assert sorted(linears) == sorted(site.name for site in every if site.group != Group.EMBEDDING)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_matrix_bias_and_shape_are_those_of_the_layer(architecture: Architecture) -> None:
    for site in architecture.lm().sites(("*",)):
        weight, bias = site.weight(), site.bias()
        rows, columns = site.shape
        assert weight.shape == (rows, columns)
        if site.is_lookup:
            tokens = torch.arange(VOCABULARY)
            assert torch.equal(site.module(tokens), weight.T)
            assert site.shape == (WIDTH, VOCABULARY)
            continue
        x = torch.randn(3, columns)
        torch.testing.assert_close(site.module(x), nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_sites_of_one_input_read_the_same_tensor(architecture: Architecture) -> None:
    lm = architecture.lm()
    sites = [site for site in lm.sites(("all",))]
    seen = inputs_of(lm, sites)
    assert len(seen) == len(sites)
    first: dict[str, torch.Tensor] = {}
    for site in sites:
        assert torch.equal(seen[site.name], first.setdefault(site.input, seen[site.name])), site.name
    # And what is measured apart is not the same after all.
    distinct = {tuple(tensor.flatten().tolist()) for tensor in first.values()}
    cross = "cross" if lm.model.config.is_encoder_decoder else None
    # Every cross-attention of a decoder reads the one output of the encoder.
    assert len(distinct) == len(first) - (BLOCKS - 1 if cross else 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_padding_mask_fits_the_rows_of_every_site(architecture: Architecture) -> None:
    lm = architecture.lm()
    length = {"source": 7, "target": 5 if lm.model.config.is_encoder_decoder else 7}
    sites = lm.sites(("all",))
    for site, tensor in zip(sites, inputs_of(lm, sites).values(), strict=True):
        assert tensor.shape[1] == length[site.places[0].reads[0]], site.name


def test_targets() -> None:
    lm = BY_NAME["llama"].lm()
    assert len(names(lm, "attention", "ffn")) == len(names(lm, "all")) == 7 * BLOCKS
    assert names(lm, "head") == ["lm_head"]
    assert names(lm, "embedding") == ["model.embed_tokens"]
    assert names(lm, "*.layers.1.mlp.*") == [f"model.layers.1.mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert names(lm, r"re:layers\.0\..*_proj$", "head")[-1] == "lm_head"
    assert names(lm, "lm_head", "head") == ["lm_head"]
    # The order is that of the forward pass, not of the targets.
    assert names(lm, "ffn", "attention") == names(lm, "all")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("atention", "did you mean 'attention'"),
        ("*.nowhere.*", "matches no site of this model; sites are named like"),
        ("re:(", "is not a regular expression"),
    ],
)
def test_target_that_names_nothing(target: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BY_NAME["gpt2"].lm().sites((target,))


def test_what_an_earlier_step_left_is_found_again() -> None:
    lm = BY_NAME["gpt2"].lm()
    before = {site.name: site for site in lm.sites(("all",))}
    for site in before.values():
        lm.replace(site, factors(site, rank=4))
    after = {site.name: site for site in lm.sites(("all",))}
    assert set(after) == {f"{name}.{factor}" for name in before for factor in ("left", "right")}
    # The right factor reads what the layer read; the left one reads the right one.
    for name, site in before.items():
        assert after[f"{name}.right"].input == site.input
        assert after[f"{name}.left"].input == f"{name}.left"
        assert after[f"{name}.left"].group == site.group
    # A compressed embedding is no longer offered.
    assert not [s for s in compress_everything(BY_NAME["t5"].lm(), 4).sites(("*",)) if s.group == Group.EMBEDDING]


def test_shapes_of_conv1d_are_out_by_in() -> None:
    shapes = {site.name.rpartition(".")[2]: site.shape for site in BY_NAME["gpt2"].lm().sites(("*.h.0.*",))}
    assert shapes == {"c_attn": (3 * WIDTH, WIDTH), "c_fc": (INNER, WIDTH), "c_proj": (WIDTH, INNER)}
