"""One step lifts any method to a whole model: budgets kept, plans reused, the identity exact."""

import copy

import pytest
import torch

from laconic.allocate import read_plan, write_plan
from laconic.calibrate import Calibration, collect_stats
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Drone, KfacSvd, Magnitude, Rtn, Svd, Wanda
from laconic.model import LanguageModel, divergence, predict
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches

NAMES = ["bert-classifier", "gpt2", "llama-tied", "t5-gated", "bart"]
every_kind = pytest.mark.parametrize("name", NAMES)


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 4))


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([predict(lm, batch)[0].values for batch in labelled_batches(lm)])


@every_kind
@pytest.mark.parametrize("allocate", ["uniform", "spectrum"])
def test_keeping_everything_changes_nothing(name, allocate):
    lm = BY_NAME[name].lm()
    before = logits(lm)
    outcome = Compress(method=KfacSvd(), keep=1.0, allocate=allocate).apply(lm, data_for(lm))
    assert torch.equal(logits(lm), before)
    assert outcome.nbytes == outcome.dense_nbytes
    assert set(outcome.plan.values()) == {None}


@every_kind
@pytest.mark.parametrize("allocate", ["uniform", "spectrum"])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_budget_is_kept_and_the_bytes_are_those_of_the_formats(name, allocate, sequential):
    lm = BY_NAME[name].lm()
    step = Compress(method=KfacSvd(multiple=1), keep=0.5, allocate=allocate, sequential=sequential)
    outcome = step.apply(lm, data_for(lm))
    assert outcome.nbytes <= 0.5 * outcome.dense_nbytes
    assert outcome.nbytes >= 0.35 * outcome.dense_nbytes
    from laconic.formats import Format, weight_nbytes

    inside = sum(
        weight_nbytes(lm.model.get_submodule(site)) for site in outcome.plan if site in dict(lm.model.named_modules())
    )
    assert inside == outcome.nbytes
    assert any(isinstance(module, Format) for module in lm.model.modules())
    assert torch.isfinite(logits(lm)).all()


@pytest.mark.parametrize("name", ["bert-classifier", "llama-tied"])
def test_the_mean_over_random_models_ranks_the_methods_as_their_objectives_do(name):
    """KL of two-sided with a spent budget < uniform data-aware < blind, over random tiny models."""

    def mean_kl(step: Compress) -> float:
        total = 0.0
        for seed in range(3):
            lm = BY_NAME[name].lm(seed)
            batches = labelled_batches(lm, 6)
            with torch.no_grad():
                dense = [predict(lm, batch)[0] for batch in batches]
                step.apply(lm, Calibration(batches))
                now = [predict(lm, batch)[0] for batch in batches]
            total += sum(divergence(a, b).mean().item() for a, b in zip(dense, now, strict=True))
        return total

    blind = mean_kl(Compress(method=Svd(multiple=1), keep=0.4))
    aware = mean_kl(Compress(method=Drone(multiple=1), keep=0.4))
    spent = mean_kl(Compress(method=KfacSvd(multiple=1), keep=0.4, allocate="spectrum"))
    assert spent < aware < blind


def test_groups_have_budgets_of_their_own():
    lm = BY_NAME["bert-classifier"].lm()
    shapes = {site.name: site.shape for site in lm.sites()}
    groups = {site.name: site.group.value for site in lm.sites()}
    step = Compress(method=KfacSvd(multiple=1), keep={"attention": 0.9, "ffn": 0.3}, allocate="spectrum")
    outcome = step.apply(lm, data_for(lm))
    for group, keep in {"attention": 0.9, "ffn": 0.3}.items():
        dense = sum(4 * m * n for name, (m, n) in shapes.items() if groups[name] == group)
        kept = sum(
            4 * (sum(shapes[name]) * method.rank if method else shapes[name][0] * shapes[name][1])
            for name, method in outcome.plan.items()
            if groups[name] == group
        )
        assert 0.8 * keep * dense <= kept <= keep * dense


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [({"attention": 0.5}, "'ffn' is missing"), ({"attention": 0.5, "fnn": 0.5}, "did you mean 'ffn'")],
)
def test_groups_that_do_not_fit_are_one_sentence(keep, sentence):
    lm = BY_NAME["bert-classifier"].lm()
    with pytest.raises(UserError, match=sentence):
        Compress(method=Svd(), keep=keep).apply(lm, data_for(lm))


def test_a_plan_is_written_read_edited_and_used_again(tmp_path):
    lm = BY_NAME["gpt2"].lm()
    again = LanguageModel.of(copy.deepcopy(lm.model))
    outcome = Compress(method=Drone(multiple=1), keep=0.5, allocate="spectrum").apply(lm, data_for(lm))
    write_plan(outcome.plan, tmp_path / "plan.yaml")
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan == outcome.plan
    Compress(method=Drone(), plan=plan).apply(again, data_for(again))
    assert torch.equal(logits(again), logits(lm))
    edited = {name: None for name in plan} | {"transformer.h.0.mlp.c_fc": Svd(rank=2)}
    fresh = BY_NAME["gpt2"].lm()
    assert Compress(method=Svd(), plan=edited).apply(fresh, None).plan["transformer.h.0.mlp.c_fc"] == Svd(rank=2)


def test_a_plan_for_another_model_is_one_sentence():
    lm = BY_NAME["gpt2"].lm()
    with pytest.raises(UserError, match=r"There is no site of this model 'layer\.9\.query'"):
        Compress(method=Svd(), plan={"layer.9.query": Svd(rank=2)}).apply(lm, None)


def test_a_rank_that_saves_nothing_leaves_the_matrix_dense():
    lm = BY_NAME["gpt2"].lm()
    before = logits(lm)
    outcome = Compress(method=Svd(rank=999)).apply(lm, None)
    assert set(outcome.plan.values()) == {None}
    assert torch.equal(logits(lm), before)


def test_several_sizes_are_solved_on_one_survey():
    lm = BY_NAME["bert-classifier"].lm()
    steps = [Compress(method=KfacSvd(multiple=1), keep=keep, allocate="spectrum") for keep in (0.7, 0.3)]
    known = collect_stats(lm, data_for(lm), steps[0].needs, lm.sites())
    sizes = [step.apply_with(LanguageModel.of(copy.deepcopy(lm.model)), known).nbytes for step in steps]
    assert sizes[0] > 2 * sizes[1]


def test_a_second_step_compresses_what_the_first_one_left():
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Svd(rank=12)).apply(lm, None)
    outcome = Compress(method=Svd(rank=4), targets=("*.left",)).apply(lm, None)
    assert outcome.nbytes < outcome.dense_nbytes
    assert torch.isfinite(logits(lm)).all()


def test_tied_matrices_are_reported_when_they_come_apart():
    lm = BY_NAME["llama-tied"].lm()
    outcome = Compress(method=KfacSvd(multiple=1), keep=0.5, targets=("head",)).apply(lm, data_for(lm))
    assert outcome.untied == ("lm_head",)
    # The table stays for the embedding, so the head's own factors come on top.
    assert outcome.dense_nbytes == 0 < outcome.nbytes
    assert torch.isfinite(logits(lm)).all()


@pytest.mark.parametrize("name", ["llama-tied", "t5", "bart-scaled", "gpt2", "bert-masked"])
def test_embeddings_and_heads_are_compressed_on_request(name):
    lm = BY_NAME[name].lm()
    step = Compress(method=KfacSvd(multiple=1), keep=0.6, targets=("embedding", "head"), allocate="spectrum")
    whole = sum(4 * site.shape[0] * site.shape[1] for site in lm.sites(("embedding", "head")))
    outcome = step.apply(lm, data_for(lm))
    assert outcome.nbytes <= 0.6 * whole
    assert torch.isfinite(logits(lm)).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": Svd(), "keep": 0.0}, r"keep must be in \(0, 1\]; got 0.0"),
        ({"method": Svd(), "keep": 1.5}, r"keep must be in \(0, 1\]; got 1.5"),
        ({"method": Svd(), "keep": {"ffn": -1.0}}, r"keep.ffn must be in \(0, 1\]; got -1.0"),
        ({"method": Svd()}, "needs a size"),
        ({"method": Svd(rank=3), "keep": 0.5}, "its size is set by rank"),
        ({"method": Svd(rank=3), "allocate": "spectrum"}, "allocate: spectrum divides keep .* leave allocate out"),
        ({"method": Rtn(bits=4), "allocate": "spectrum", "currency": "latency"}, "allocate: spectrum divides keep"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Compress(**arguments)


@pytest.mark.parametrize("method", [Svd(rank=2), Magnitude(sparsity=0.5)])
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_weights_that_are_not_finite_as_they_are_stored_name_their_matrix(method, value):
    lm = BY_NAME["bert-classifier"].lm().with_dtype(torch.float16)
    site = lm.sites()[3]
    with torch.no_grad():
        site.parameter[1, 1] = value
    with pytest.raises(UserError, match=f"The weights of '{site.name}' are not finite"):
        Compress(method=method).apply(lm, None)


def test_a_pattern_that_does_not_divide_a_matrix_names_it_before_any_work():
    lm = BY_NAME["bert-classifier"].lm()
    first = lm.sites()[0].name
    sentence = f"wanda.pattern must be N:M with an M that divides the .* inputs of '{first}'; got '2:7'"
    for step in (Compress(method=Wanda(pattern="2:7")), Compress(method=Svd(), plan={first: Wanda(pattern="2:7")})):
        with pytest.raises(UserError, match=sentence):
            step.check(lm)
    Compress(method=Svd(), plan={first: None, lm.sites()[1].name: Wanda(pattern="2:4")}).check(lm)


def test_missing_data_is_one_sentence():
    lm = BY_NAME["gpt2"].lm()
    with pytest.raises(UserError, match="needs calibration data"):
        Compress(method=Drone(), keep=0.5).apply(lm, None)


def test_a_tied_matrix_counts_once():
    lm = BY_NAME["llama-tied"].lm()
    sites = lm.sites(("embedding", "head"))
    rows, columns = sites[0].shape
    assert sum(lm.stored_nbytes(sites).values()) == 4 * rows * columns


def test_a_training_model_stays_one():
    lm = BY_NAME["gpt2"].lm()
    lm.model.train()
    Compress(method=Drone(multiple=1), keep=0.5, sequential=True).apply(lm, data_for(lm))
    assert lm.model.training


def test_what_keep_came_to_is_told_where_bits_are_too_few_to_reach_it():
    lm = BY_NAME["bert-classifier"].lm()
    outcome = Compress(method=Rtn(), keep=0.5).apply(lm, None)
    # Eight bits, and two numbers of 16 bits for each row of 32 weights, or of 48.
    (told,) = outcome.found["reached"]
    assert told == {"keep": 0.5, "kept": round(outcome.nbytes / outcome.dense_nbytes, 4)}
    assert 0.25 < told["kept"] < 0.3
    by_group = Compress(method=Rtn(), keep={"attention": 0.3, "ffn": 0.5}).apply(BY_NAME["bert-classifier"].lm(), None)
    assert [line["keep"] for line in by_group.found["reached"]] == [0.3, 0.5]
    assert Compress(method=Magnitude(), keep=0.5).apply(BY_NAME["gpt2"].lm(), None).found == {}


@pytest.mark.parametrize("allocate", ["uniform", "spectrum"])
def test_a_budget_that_no_size_meets_is_refused_before_any_work(allocate):
    lm = BY_NAME["bert-classifier"].lm()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    step = Compress(method=Rtn(), keep=0.05, allocate=allocate)
    with pytest.raises(
        UserError, match=r"keep must be at least 0\.\d{4}, the fraction that the smallest sizes .*; got 0\.05\."
    ):
        step.apply(lm, data_for(lm))
    if allocate == "uniform":
        with pytest.raises(UserError, match="keep must be at least"):
            step.check(lm.to_meta())
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())
