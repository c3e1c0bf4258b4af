"""Parts of a streamed model are in memory within a context, and only there."""

import weakref
from pathlib import Path

import pytest
import torch

from laconic.compress.replacing import free_replaced
from laconic.formats import LowRank
from laconic.model.loading import load, load_streamed
from tests.architectures import BY_NAME, outputs
from tests.loaned import nbytes

BLOCK = "model.layers.1"
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    BY_NAME["llama"].model().bfloat16().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_contexts_are_nested_and_a_tensor_is_read_once(folder: str) -> None:
    lm = load_streamed(folder)
    with lm.on_loan(BLOCK):
        weight = lm.model.get_parameter(WEIGHT)
        with lm.on_loan(f"{BLOCK}.mlp", "lm_head"):
            assert lm.model.get_parameter(WEIGHT) is weight
            assert not lm.model.get_parameter("lm_head.weight").is_meta
        assert lm.model.get_parameter(WEIGHT) is weight
        assert lm.model.get_parameter("lm_head.weight").is_meta
    assert lm.model.get_parameter(WEIGHT).is_meta
    with lm.on_loan(f"{BLOCK}.mlp"):
        assert torch.equal(lm.model.get_parameter(WEIGHT), weight)
        assert lm.model.get_parameter(f"{BLOCK}.self_attn.q_proj.weight").is_meta


def test_a_copy_shares_what_is_on_disk(folder: str) -> None:
    lm = load_streamed(folder)
    for other in (lm.copy(), lm.shallow_copy()):
        with lm.on_loan(BLOCK), other.on_loan(""):
            assert torch.equal(outputs(other.model), outputs(load(folder).model))
        assert nbytes(other.model) == nbytes(lm.model)


def test_a_model_in_memory_is_always_there(folder: str) -> None:
    lm = load(folder)
    with lm.on_loan(BLOCK):
        assert not lm.model.get_parameter(WEIGHT).is_meta


def test_what_was_in_memory_stays_after_an_error(folder: str) -> None:
    lm = load_streamed(folder)
    before = nbytes(lm.model)
    with pytest.raises(ZeroDivisionError), lm.on_loan(BLOCK):
        raise ZeroDivisionError
    assert nbytes(lm.model) == before


def test_a_change_in_place_is_not_lost_silently(folder: str) -> None:
    lm = load_streamed(folder)
    with pytest.raises(AssertionError, match="were changed in place"), torch.no_grad(), lm.on_loan(BLOCK):
        lm.model.get_parameter(WEIGHT).mul_(2)


def test_a_layer_that_was_replaced_is_freed_while_its_block_is_on_loan(folder: str) -> None:
    lm = load_streamed(folder)
    site = next(site for site in lm.sites(("ffn",)) if site.name == WEIGHT.removesuffix(".weight"))
    with lm.on_loan(BLOCK):
        replaced = weakref.ref(lm.model.get_parameter(WEIGHT))
        kept = lm.model.get_parameter(f"{BLOCK}.self_attn.q_proj.weight")
        lm.replace(site, LowRank.empty(in_features=site.shape[1], out_features=site.shape[0], rank=1, bias=False))
        free_replaced(lm)
        assert replaced() is None
        assert lm.model.get_parameter(f"{BLOCK}.self_attn.q_proj.weight") is kept
