"""Matrices that can be compressed are found in forward order as (out, in), in whatever module they are."""

from collections import Counter

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.model import Group, LanguageModel, Role
from tests.architectures import (
    BLOCKS,
    BY_NAME,
    EVERY_ARCHITECTURE,
    INNER,
    VOCABULARY,
    WIDTH,
    Architecture,
    compress_everything,
    factors,
)

# Linears of attention and of the feed-forward in one block (of each stack), and outside the blocks.
COUNTS = {
    "bert-classifier": (4, 2, 2),  # the pooler and the classifier
    "bert-masked": (4, 2, 2),  # the transform and the decoder
    "bert-masked-untied": (4, 2, 2),
    "bert-base": (4, 2, 1),
    "roberta-masked": (4, 2, 2),
    "distilbert-masked": (4, 2, 2),
    "distilbert-classifier": (4, 2, 2),
    "albert-masked": (4, 2, 3),  # and what widens its embeddings
    "albert-groups": (4, 2, 3),
    "electra-masked": (4, 2, 3),
    "electra-classifier": (4, 2, 3),
    "deberta-masked": (4, 2, 2),  # one for queries, keys and values, two of positions
    "deberta-v2-masked": (6, 2, 2),
    "deberta-v3-classifier": (4, 2, 2),
    "longformer-masked": (7, 2, 2),
    "longformer-classifier": (7, 2, 2),
    "modernbert-masked": (2, 2, 2),
    "gpt2": (2, 2, 1),
    "gpt2-untied": (2, 2, 1),
    "gpt-neo": (4, 2, 1),
    "gpt-neox": (2, 2, 1),
    "opt": (4, 2, 3),  # what widens its embeddings, and what narrows them again
    "opt-norm-after": (4, 2, 3),
    "llama": (4, 3, 1),
    "llama-tied": (4, 3, 1),
    "mistral": (4, 3, 1),
    "qwen2": (4, 3, 1),
    "qwen3": (4, 3, 1),
    "gemma": (4, 3, 1),
    "gemma2": (4, 3, 1),
    "gemma3": (4, 3, 1),
    "phi": (4, 2, 1),
    "t5": (4 + 8, 2 + 2, 1),
    "t5-gated": (4 + 8, 3 + 3, 1),
    "bart": (4 + 8, 2 + 2, 1),
    "bart-untied": (4 + 8, 2 + 2, 1),
    "bart-scaled": (4 + 8, 2 + 2, 1),
    "marian": (4 + 8, 2 + 2, 1),
    "marian-two-vocabularies": (4 + 8, 2 + 2, 1),
    "led": (7 + 8, 2 + 2, 1),
    "xlm-roberta-masked": (4, 2, 2),
    "camembert-classifier": (4, 2, 2),
    "mpnet-masked": (4, 2, 2),
    "big-bird-masked": (4, 2, 3),  # and the pooler
    "gptj": (4, 2, 1),
    "granite": (4, 3, 1),
    "smollm3": (4, 3, 1),
    "starcoder2": (4, 2, 1),
    "olmo2": (4, 3, 1),
    "olmo3": (4, 3, 1),
    "cohere2": (4, 3, 1),
    "cohere": (4, 3, 1),
    "stablelm": (4, 3, 1),
    "stablelm-parallel": (4, 3, 1),
    "phi3": (2, 2, 1),
    "gpt-bigcode": (2, 2, 1),
    "gpt-bigcode-heads": (2, 2, 1),
    "bloom": (2, 2, 1),
    "mpt": (2, 2, 1),
    "falcon-one-key": (2, 2, 1),
    "falcon-keys": (2, 2, 1),
    "falcon-heads": (2, 2, 1),
    "falcon-alibi": (2, 2, 1),
    "mt5": (4 + 8, 3 + 3, 1),
    "umt5": (4 + 8, 3 + 3, 1),
    "blenderbot-small": (4 + 8, 2 + 2, 1),
    "mbart": (4 + 8, 2 + 2, 1),
    "m2m-100": (4 + 8, 2 + 2, 1),
    "pegasus": (4 + 8, 2 + 2, 1),
    "blenderbot": (4 + 8, 2 + 2, 1),
}
# ALBERT has fewer blocks than layers.
BLOCKS_OF = {"albert-masked": 1, "albert-groups": 4}
# Two stacks have a table each once nothing is tied.
TABLES_OF = {"bart-untied": 2, "marian-two-vocabularies": 2}
every_architecture = pytest.mark.parametrize(
    "architecture", EVERY_ARCHITECTURE, ids=lambda architecture: architecture.name
)


def names(lm: LanguageModel, *targets: str) -> list[str]:
    return [site.name for site in lm.sites(targets)]


@every_architecture
def test_every_linear_is_one_site(architecture: Architecture) -> None:
    lm = architecture.lm()
    attention, ffn, head = COUNTS[architecture.name]
    blocks = BLOCKS_OF.get(architecture.name, BLOCKS)
    every = lm.sites(("*",))
    by_group = {group: [site for site in every if site.group == group] for group in Group}
    assert len(by_group[Group.ATTENTION]) == attention * blocks
    assert len(by_group[Group.FFN]) == ffn * blocks
    assert len(by_group[Group.HEAD]) == head
    assert len(by_group[Group.EMBEDDING]) == TABLES_OF.get(architecture.name, 1)
    linears = [name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    assert sorted(linears) == sorted(site.name for site in every if site.group != Group.EMBEDDING)


@every_architecture
def test_every_block_has_its_roles(architecture: Architecture) -> None:
    lm = architecture.lm()
    for stack, blocks in lm.stacks():
        for path, _ in blocks:
            roles = Counter((site.group, site.role) for site in lm.sites(("blocks",)) if site.block == path)
            attentions = 1 if stack.cross_attention is None else 2
            assert roles[Group.ATTENTION, Role.OUTPUT] == attentions
            assert roles[Group.FFN, Role.OUTPUT] == 1
            assert roles[Group.FFN, Role.INNER] >= 1
            fused = roles[Group.ATTENTION, Role.FUSED]
            for role in (Role.QUERY, Role.KEY, Role.VALUE):
                # Positions and tokens with global attention have projections of their own.
                assert fused or roles[Group.ATTENTION, role] >= attentions
            assert not any(role is Role.OTHER for _, role in roles)
    last = [site for site in lm.sites(("*",)) if site.group is Group.HEAD and site.role is Role.OUTPUT]
    assert len(last) == 1
    predicts = lm.model.get_output_embeddings()
    assert predicts is None or last[0].module is predicts


@every_architecture
def test_matrix_bias_and_shape_are_those_of_the_layer(architecture: Architecture) -> None:
    for site in architecture.lm().sites(("*",)):
        weight, bias = site.weight(), site.bias()
        rows, columns = site.shape
        assert weight.shape == (rows, columns)
        if site.is_lookup:
            tokens = torch.arange(VOCABULARY)
            assert torch.equal(site.module(tokens), weight.T)
            assert columns == VOCABULARY
            continue
        x = torch.randn(3, columns)
        torch.testing.assert_close(site.module(x), nn.functional.linear(x, weight, bias))


def test_targets() -> None:
    lm = BY_NAME["llama"].lm()
    assert len(names(lm, "attention", "ffn")) == len(names(lm, "blocks")) == 7 * BLOCKS
    assert names(lm, "head") == ["lm_head"]
    assert names(lm, "embedding") == ["model.embed_tokens"]
    assert names(lm, "*.layers.1.mlp.*") == [f"model.layers.1.mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert names(lm, r"re:layers\.0\..*_proj$", "head")[-1] == "lm_head"
    assert names(lm, "lm_head", "head") == ["lm_head"]
    # The order is that of the forward pass, not of the targets.
    assert names(lm, "ffn", "attention") == names(lm, "blocks")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("atention", "did you mean 'attention'"),
        ("*.nowhere.*", "matches no site of this model; it has the groups embedding, attention, ffn, head"),
        ("re:(", "is not a regular expression"),
    ],
)
def test_target_that_names_nothing(target: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BY_NAME["gpt2"].lm().sites((target,))


def test_what_an_earlier_step_left_is_found_again() -> None:
    lm = BY_NAME["gpt2"].lm()
    before = {site.name: site for site in lm.sites(("blocks",))}
    for site in before.values():
        lm.replace(site, factors(site, rank=4))
    after = {site.name: site for site in lm.sites(("blocks",))}
    assert set(after) == {f"{name}.{factor}" for name in before for factor in ("left", "right")}
    # The right factor reads what the layer read; the left one reads the right one.
    for name, site in before.items():
        assert after[f"{name}.right"].input == site.input
        assert after[f"{name}.left"].input == f"{name}.left"
        assert after[f"{name}.left"].group == site.group
    # A compressed embedding is no longer offered.
    assert not [s for s in compress_everything(BY_NAME["t5"].lm(), 4).sites(("*",)) if s.group == Group.EMBEDDING]


@pytest.mark.parametrize("name", ["bert-masked", "albert-masked", "bart"])
def test_factors_keep_the_role_of_the_whole(name: str) -> None:
    lm = BY_NAME[name].lm()
    linears = [site for site in lm.sites(("*",)) if not site.is_lookup]
    before = {site.name: site.role for site in linears}
    for site in linears:
        lm.replace(site, factors(site, rank=4))
    after = {site.name: site.role for site in lm.sites(("*",)) if not site.is_lookup}
    assert after == {f"{name}.{factor}": role for name, role in before.items() for factor in ("left", "right")}


def test_the_cost_of_compressions_groups() -> None:
    """The groups of BERT are those that the authors of the paper select."""
    lm = BY_NAME["bert-masked"].lm()
    linears = {name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)}
    attention = {name for name in linears if name.endswith((".query", ".key", ".value"))}
    assert set(names(lm, "coc:attention")) == attention
    head = {"cls.predictions.transform.dense", "cls.predictions.decoder"}
    assert set(names(lm, "coc:ffn")) == linears - attention - head
    assert set(names(lm, "coc:all")) == linears - {"cls.predictions.decoder"}
    for group in ("attention", "ffn", "all"):
        assert names(lm, f"cost-of-compression:{group}") == names(lm, f"coc:{group}")
    assert names(BY_NAME["gpt2"].lm(), "coc:attention") == [f"transformer.h.{i}.attn.c_attn" for i in range(BLOCKS)]
    assert "lm_head" not in names(BY_NAME["opt"].lm(), "coc:all")
    with pytest.raises(UserError, match="did you mean 'coc:attention'"):
        lm.sites(("coc:atention",))


def test_shapes_of_conv1d_are_out_by_in() -> None:
    shapes = {site.name.rpartition(".")[2]: site.shape for site in BY_NAME["gpt2"].lm().sites(("*.h.0.*",))}
    assert shapes == {"c_attn": (3 * WIDTH, WIDTH), "c_fc": (INNER, WIDTH), "c_proj": (WIDTH, INNER)}
