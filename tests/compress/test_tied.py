"""A head that is tied to the word embedding is one matrix until it is replaced; budgets count it so."""

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress
from laconic.compress.solve_groups import find_layer_sets, stored_fractions
from laconic.methods import METHODS, AnyOf, Gptq, KfacSvd, Magnitude, Method, Svd
from laconic.model import Group, LanguageModel
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches

TIED = {"llama-tied": ("model.embed_tokens", "lm_head"), "bert-masked": ("bert.embeddings.word_embeddings",
                                                                         "cls.predictions.decoder")}  # fmt: skip


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 1))


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("step", [
    Compress(method=Svd(multiple=1), keep=0.6, targets=("all",)),
    Compress(method=KfacSvd(multiple=1), keep=0.6, targets=("all",), allocate="spectrum"),
    Compress(method=KfacSvd(multiple=1), keep=0.6, targets=("all",), allocate="spectrum", currency="parameters"),
    Compress(method=Magnitude(), keep=0.6, targets=("all",)),
    Compress(method=Magnitude(), keep=0.6, targets=("all",), allocate="global"),
], ids=lambda step: f"{step.method.name}-{step.allocate}")  # fmt: skip
def test_two_places_of_one_matrix_share_its_bytes(name: str, step: Compress) -> None:
    lm = BY_NAME[name].lm()
    outcome = step.apply(lm, data_for(lm))
    # What is stored once before.
    assert outcome.dense_nbytes < sum(site.parameter.numel() for site in BY_NAME[name].lm().sites(("all",))) * 4
    assert 0.97 * 0.6 <= outcome.nbytes / outcome.dense_nbytes <= 0.6
    assert torch.isfinite(outputs(lm.model)).all()


def test_left_as_they_are_they_take_the_bytes_of_one() -> None:
    # All of the others at a third or less leave room for the matrix that both places hold, and not for it twice.
    lm = BY_NAME["llama-tied"].lm()
    step = Compress(method=Gptq(group_size=8), keep=0.65, targets=("all",), allocate="spectrum")
    outcome = step.apply(lm, data_for(lm))
    assert outcome.nbytes <= 0.65 * outcome.dense_nbytes
    assert [outcome.plan[place] for place in TIED["llama-tied"]] == [None, None]
    assert outcome.untied == ()
    whole = Compress(method=Gptq(), keep=1.0, targets=("all",), allocate="spectrum")
    assert set(whole.apply(BY_NAME["llama-tied"].lm(), data_for(lm)).plan.values()) == {None}


def test_only_places_that_are_both_targeted_share() -> None:
    lm = BY_NAME["llama-tied"].lm()
    assert stored_fractions(find_layer_sets(lm.sites(("all",)), False)) == dict.fromkeys(TIED["llama-tied"], 0.5)
    assert stored_fractions(find_layer_sets(lm.sites(("head", "blocks")), False)) == {}
    assert stored_fractions(find_layer_sets(BY_NAME["llama"].lm().sites(("all",)), True)) == {}


@pytest.mark.parametrize("method", [kind for kind in METHODS if kind is not AnyOf], ids=lambda method: method.name)
def test_every_method_does_all_sites(method: type[Method]) -> None:
    lm = BY_NAME["bert-masked"].lm()
    step = Compress(method=method(), keep=None if method().has_size else 0.6, targets=("all",))
    outcome = step.apply(lm, data_for(lm))
    assert set(outcome.plan) == {site.name for site in BY_NAME["bert-masked"].lm().sites(("*",))}
    assert None not in outcome.plan.values()
    assert {Group.EMBEDDING, Group.HEAD} <= {site.group for site in BY_NAME["bert-masked"].lm().sites(("all",))}
    assert torch.isfinite(outputs(lm.model)).all()
