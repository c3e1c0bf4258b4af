"""Matrices of one input, solved as one: units, plans, budgets, and models that reload."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from laconic.allocate import group_name, read_plan, site_names, write_plan
from laconic.calibrate import Calibration, Fisher, GradCovariance, InputCovariance, collect_stats, concatenate_problems
from laconic.calibrate.layer_stats import Problem
from laconic.calibrate.passes import Workload
from laconic.compress import Compress
from laconic.compress.solve_groups import find_layer_sets
from laconic.errors import UserError
from laconic.formats import LowRankReader, weight_nbytes
from laconic.methods import Drone, Fwsvd, KfacSvd, Svd
from laconic.model import LanguageModel, predict
from laconic.store import save
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 4))


@torch.no_grad()
def logits(lm: LanguageModel) -> torch.Tensor:
    return torch.cat([predict(lm, batch)[0].values for batch in labelled_batches(lm)])


def groups_depth(unit: str) -> int:
    """The number of components of a group's name that the test below compares."""
    return 3 if ".self." in unit else 2


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("bert-classifier", {"attention.self.{query,key,value}"}),
        ("llama", {"self_attn.{k_proj,v_proj}", "mlp.{gate_proj,up_proj}"}),
        ("gpt2", set()),
        ("t5-gated", {"SelfAttention.{q,k,v}", "EncDecAttention.{k,v}", "DenseReluDense.{wi_0,wi_1}"}),
    ],
)
def test_what_reads_the_same_and_is_as_wide_is_one_unit(name, groups):
    lm = BY_NAME[name].lm()
    layer_sets = find_layer_sets(lm.sites(("blocks",)), share_inputs=True)
    together = {layers.joint[0].name for layers in layer_sets if len(layers.alternatives) > 1}
    assert {".".join(name.rsplit(".", groups_depth(name))[1:]) for name in together} == groups
    assert all(len(layers.alternatives) == 1 for layers in find_layer_sets(lm.sites(("blocks",)), share_inputs=False))


def test_several_sites_have_one_name_that_says_them_all():
    sites = ("a.0.self.query", "a.0.self.key", "a.0.self.value")
    assert group_name(sites) == "a.0.self.{query,key,value}"
    assert site_names("a.0.self.{query,key,value}") == sites
    assert site_names(group_name(("a.x.q", "a.y.k"))) == ("a.x.q", "a.y.k")
    assert site_names("a.0.output.dense") == ("a.0.output.dense",)


def test_stacked_knowledge_is_that_of_the_stacked_matrix():
    lm = BY_NAME["bert-classifier"].lm()
    sites = lm.sites()[:3]
    known = collect_stats(lm, data_for(lm), {InputCovariance, GradCovariance, Fisher}, sites)
    whole = concatenate_problems([Problem(weight=site.weight(), stats=known[site.name]) for site in sites])
    rows = sites[0].shape[0]
    assert whole.weight.shape == (3 * rows, sites[0].shape[1])
    assert whole.stats[InputCovariance] is known[sites[0].name][InputCovariance]
    F = whole.stats[GradCovariance].matrix
    for index, site in enumerate(sites):
        here = slice(index * rows, (index + 1) * rows)
        assert torch.allclose(F[here, here], known[site.name][GradCovariance].matrix)
        assert not F[here, : index * rows].any()
        assert torch.allclose(whole.stats[Fisher].matrix[here], known[site.name][Fisher].matrix)


@pytest.mark.parametrize("method", [Svd(multiple=1), Fwsvd(multiple=1), Drone(multiple=1), KfacSvd(multiple=1)])
@pytest.mark.parametrize("name", ["bert-classifier", "llama", "t5-gated"])
def test_uniform_sharing_keeps_the_budget_and_the_bytes_are_those_stored(method, name):
    lm = BY_NAME[name].lm()
    outcome = Compress(method=method, keep=0.5, share_inputs=True).apply(lm, data_for(lm))
    assert outcome.nbytes <= 0.5 * outcome.dense_nbytes
    assert any(isinstance(module, LowRankReader) for module in lm.model.modules())
    sites = [site for unit in outcome.plan for site in site_names(unit)]
    assert sum(weight_nbytes(lm.model.get_submodule(site)) for site in sites) == outcome.nbytes
    assert torch.isfinite(logits(lm)).all()


def test_the_stacked_solution_is_the_best_of_the_shared_form():
    """Drone on the stack: the output error of all three together is the tail of the singular values of W C^{1/2}."""
    lm = BY_NAME["bert-classifier"].lm()
    sites = lm.sites()[:3]
    known = collect_stats(lm, data_for(lm), {InputCovariance}, sites)
    W, C = torch.cat([site.weight() for site in sites]).double(), known[sites[0].name][InputCovariance].matrix
    rank = 5
    Compress(method=Drone(rank=rank), share_inputs=True, targets=tuple(site.name for site in sites)).apply(
        lm, data_for(lm)
    )
    W_hat = torch.cat([lm.model.get_submodule(site.name).dense() for site in sites]).double()
    L = torch.linalg.cholesky(C + 1e-12 * torch.eye(len(C)))
    tail = torch.linalg.svdvals(W @ L)[rank:].square().sum()
    assert ((W - W_hat) @ L).square().sum().item() == pytest.approx(tail.item(), rel=1e-3)


def test_spectrum_takes_sharing_where_it_predicts_less_loss():
    """Query and key made of the same input directions: together they need half of the ranks."""
    lm = BY_NAME["bert-classifier"].lm()
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(8, 32, generator=generator)
    for site in lm.sites():
        if site.name.endswith(("query", "key", "value")):
            site.module.weight.data = torch.randn(32, 8, generator=generator) @ shared / 16
    step = Compress(method=KfacSvd(multiple=1), keep=0.4, allocate="spectrum", share_inputs=True)
    apart = Compress(method=KfacSvd(multiple=1), keep=0.4, allocate="spectrum")
    known = collect_stats(lm, data_for(lm), step.needs, lm.sites())
    other = LanguageModel.of(BY_NAME["bert-classifier"].model())
    other.model.load_state_dict(lm.model.state_dict())
    together, alone = step.apply_with(lm, known), apart.apply_with(other, known)
    assert any("{query,key,value}" in unit for unit in together.plan)
    assert together.predicted_loss is not None
    assert alone.predicted_loss is not None
    assert together.predicted_loss < 0.9 * alone.predicted_loss
    assert together.nbytes <= 0.4 * together.dense_nbytes


@pytest.mark.parametrize(
    ("name", "auto"), [("bert-classifier", AutoModelForSequenceClassification), ("llama", AutoModelForCausalLM)]
)
def test_a_shared_model_is_saved_once_and_reloads_to_the_last_bit(name, auto, tmp_path: Path):
    lm = BY_NAME[name].lm()
    outcome = Compress(method=Drone(multiple=1), keep=0.4, share_inputs=True).apply(lm, data_for(lm))
    save(lm, tmp_path / "small")
    again = LanguageModel.of(auto.from_pretrained(tmp_path / "small"))
    assert torch.equal(logits(again), logits(lm))
    readers = [module for module in again.model.modules() if isinstance(module, LowRankReader)]
    assert readers
    assert all(reader.source is not None for reader in readers)
    stored = sum(tensor.nbytes for tensor in again.model.state_dict().values())
    dense = sum(tensor.nbytes for tensor in BY_NAME[name].model().state_dict().values())
    assert dense - stored == outcome.dense_nbytes - outcome.nbytes


def test_a_plan_with_shared_units_is_written_read_and_used_again(tmp_path: Path):
    first, second = BY_NAME["llama"].lm(), BY_NAME["llama"].lm()
    outcome = Compress(method=Drone(multiple=1), keep=0.5, share_inputs=True).apply(first, data_for(first))
    write_plan(outcome.plan, tmp_path / "plan.yaml")
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan == outcome.plan
    Compress(method=Drone(), plan=plan).apply(second, data_for(second))
    assert torch.equal(logits(first), logits(second))


def test_shared_inputs_and_anchors_go_together():
    lm = BY_NAME["bert-classifier"].lm()
    step = Compress(method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum", share_inputs=True, anchored=True)
    outcome = step.apply(lm, data_for(lm))
    assert outcome.nbytes <= 0.5 * outcome.dense_nbytes
    assert torch.isfinite(logits(lm)).all()


def test_a_later_step_compresses_a_shared_factor_for_all_that_read_it():
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Drone(rank=12), share_inputs=True, targets=("*.query", "*.key", "*.value")).apply(lm, data_for(lm))
    outcome = Compress(method=Svd(rank=4), targets=("*.query.right",)).apply(lm, None)
    assert outcome.nbytes < outcome.dense_nbytes
    key = lm.model.get_submodule("bert.encoder.layer.0.attention.self.key")
    assert torch.linalg.matrix_rank(key.dense()) == 4
    assert torch.isfinite(logits(lm)).all()


def test_sharing_by_a_method_without_factors_is_one_sentence(monkeypatch):
    monkeypatch.setattr(Svd, "shares_inputs", False)
    with pytest.raises(UserError, match="share_inputs must be left out: the method 'svd'"):
        Compress(method=Svd(), keep=0.5, share_inputs=True)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({"{query,output}": Drone(rank=4)}, "must name matrices of one shape that read one input"),
        ({"self.{query,key}": Drone(rank=4), "self.query": Drone(rank=2)}, "names .*query' in two lines"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_one_sentence(plan, sentence):
    lm = BY_NAME["bert-classifier"].lm()
    block = "bert.encoder.layer.0.attention."
    named = {
        "{query,output}": block + "{self.query,output.dense}",
        "self.{query,key}": block + "self.{query,key}",
        "self.query": block + "self.query",
    }
    step = Compress(method=Drone(), plan={named[line]: method for line, method in plan.items()})
    # The square matrices of this model are all of one shape; what they read differs.
    with pytest.raises(UserError, match=sentence):
        step.check(lm)


@pytest.mark.parametrize(
    "asked",
    [
        {"currency": "macs"},
        {"workload": Workload(batch=1)},
        {"allocate": "spectrum", "refresh": 1, "sequential": True, "method": Svd(), "share_inputs": True, "keep": None},
    ],
)
def test_what_would_change_nothing_is_refused(asked):
    with pytest.raises((UserError, TypeError), match=r"left out|needs a size"):
        Compress(**{"method": Svd(), "keep": 0.5, **asked})


def test_an_anchored_walk_takes_embeddings_and_heads_too():
    lm = BY_NAME["bert-masked"].lm()
    step = Compress(method=Drone(multiple=1), keep=0.6, anchored=True, targets=("embedding", "attention", "head"))
    outcome = step.apply(lm, data_for(lm))
    # Its tied matrix becomes two, so what is kept is more than was asked for.
    assert outcome.nbytes < outcome.dense_nbytes
    assert None not in outcome.plan.values()
    assert torch.isfinite(logits(lm)).all()
