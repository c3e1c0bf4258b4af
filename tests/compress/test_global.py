"""One threshold for all matrices: exactly the zeros asked for, where a sort of every score would put them."""

import copy
import math
import sys
from collections.abc import Sequence

import pytest
import torch
from torch.nn.utils import prune

from laconic.allocate import read_plan, write_plan
from laconic.calibrate import Calibration, InputCovariance, collect_stats
from laconic.compress import Compress, Outcome
from laconic.compress.allocators.global_threshold import sparsity_of
from laconic.errors import UserError
from laconic.methods import KfacPrune, KfacSvd, LnStructured, Magnitude, Svd, Wanda
from laconic.model import LanguageModel, Site
from tests.architectures import BY_NAME
from tests.compress.test_matrices import data_for, logits


def twin(lm: LanguageModel) -> LanguageModel:
    return LanguageModel.of(copy.deepcopy(lm.model))


def numel(sites: Sequence[Site]) -> int:
    return sum(rows * columns for rows, columns in (site.shape for site in sites))


def zeros(lm: LanguageModel, targets: tuple[str, ...] = ("attention", "ffn")) -> dict[str, int]:
    return {site.name: int((site.weight() == 0).sum()) for site in lm.sites(targets)}


def by_magnitude(lm: LanguageModel, sparsity: float, **more: object) -> Outcome:
    return Compress(method=Magnitude(sparsity=sparsity), allocate="global", **more).apply(lm, None)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama-tied", "t5-gated", "albert-masked"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.99])
def test_the_zeros_are_those_of_torchs_global_pruning(name: str, sparsity: float) -> None:
    lm = BY_NAME[name].lm()
    modules = [copy.deepcopy(site.module) for site in lm.sites()]
    prune.global_unstructured([(module, "weight") for module in modules], prune.L1Unstructured, amount=sparsity)
    by_torch = [int((module.get_buffer("weight_mask") == 0).sum()) for module in modules]
    by_magnitude(lm, sparsity)
    assert sum(zeros(lm).values()) == round(sparsity * numel(lm.sites()))
    # torch may take all weights of a matrix; here one of each stays.
    assert list(zeros(lm).values()) == pytest.approx(by_torch, abs=1)


def test_the_smallest_of_all_scores_go() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    method = Wanda(sparsity=0.4, within="matrix")
    known = collect_stats(lm, data, method.required_statistics, lm.sites())
    # Equation 1 of the paper: |w_ij| ‖x_j‖.
    scores = {
        site.name: site.weight().abs() * known[site.name][InputCovariance].matrix.diagonal().sqrt()
        for site in lm.sites()
    }
    every = torch.cat([matrix.flatten() for matrix in scores.values()])
    tau = every.kthvalue(round(0.4 * len(every))).values
    expected = {name: int((matrix <= tau).sum()) for name, matrix in scores.items()}
    Compress(method=method, allocate="global").apply(lm, data)
    assert zeros(lm) == expected


def test_no_matrix_loses_more_than_the_cap() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    first = lm.sites()[0]
    with torch.no_grad():
        first.parameter.mul_(1e-3)
    free, capped = twin(lm), twin(lm)
    by_magnitude(free, 0.5)
    Compress(method=Magnitude(sparsity=0.5, cap=0.6), allocate="global").apply(capped, None)
    size = first.shape[0] * first.shape[1]
    assert zeros(free)[first.name] == size - 1
    assert zeros(capped)[first.name] == math.ceil(0.6 * size)
    assert sum(zeros(capped).values()) == sum(zeros(free).values())


def test_the_cap_itself_can_be_asked_for() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Magnitude(sparsity=0.777, cap=0.777), allocate="global").apply(lm, None)
    assert sum(zeros(lm).values()) == round(0.777 * numel(lm.sites()))


def test_equal_weights_are_pruned_to_the_exact_number() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    with torch.no_grad():
        for site in lm.sites():
            site.parameter.fill_(0.25)
    by_magnitude(lm, 0.3)
    assert sum(zeros(lm).values()) == round(0.3 * numel(lm.sites()))


@pytest.mark.parametrize("keep", [0.6, {"attention": 0.8, "ffn": 0.3}])
def test_keep_is_of_the_bytes_all_together_or_by_group(keep: float | dict[str, float]) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    outcome = Compress(method=Magnitude(), keep=keep, allocate="global").apply(lm, None)
    for group, fraction in (keep if isinstance(keep, dict) else {"*": keep}).items():
        names = [site.name for site in lm.sites((group,) if group != "*" else ("attention", "ffn"))]
        dense, now = (sum(sizes[name] for name in names) for sizes in (outcome.before, outcome.after))
        assert 0.99 * fraction * dense <= now <= fraction * dense


@pytest.mark.parametrize("arguments", [{"method": Magnitude(sparsity=0.0)}, {"method": Magnitude(), "keep": 1.0}])
def test_nothing_asked_for_changes_nothing(arguments: dict) -> None:
    lm = BY_NAME["gpt2"].lm()
    before = logits(lm)
    outcome = Compress(**arguments, allocate="global").apply(lm, None)
    assert torch.equal(logits(lm), before)
    assert set(outcome.plan.values()) == {None} and outcome.nbytes == outcome.dense_nbytes


def test_the_plan_has_a_sparsity_for_each_matrix_and_makes_the_same_model_again(tmp_path) -> None:
    lm = BY_NAME["gpt2"].lm()
    again = twin(lm)
    outcome = by_magnitude(lm, 0.5)
    assert len({method.sparsity for method in outcome.plan.values() if isinstance(method, Magnitude)}) > 2
    write_plan(outcome.plan, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == outcome.plan
    Compress(method=Magnitude(), plan=read_plan(tmp_path / "plan.yaml")).apply(again, None)
    assert torch.equal(logits(again), logits(lm))


@pytest.mark.parametrize("walk", [{"sequential": True}, {"anchored": True}])
def test_it_is_solved_on_a_walk_too(walk: dict) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    there, walked = twin(lm), twin(lm)
    step = Compress(method=Wanda(sparsity=0.5, within="matrix"), allocate="global")
    plan = step.apply(there, data).plan
    assert Compress(method=step.method, allocate="global", **walk).apply(walked, data).plan == plan
    assert zeros(walked) == zeros(there)


def test_shots_carry_the_zeros_and_count_them() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    earlier = None
    for sparsity in (0.2, 0.45, 0.7):
        Compress(method=Wanda(sparsity=sparsity, within="matrix", cap=0.9), allocate="global").apply(lm, data)
        gone = {site.name: site.weight() == 0 for site in lm.sites()}
        assert sum(int(mask.sum()) for mask in gone.values()) == round(sparsity * numel(lm.sites()))
        assert earlier is None or all(bool(gone[name][mask].all()) for name, mask in earlier.items())
        earlier = gone
    # What is there already stays, even where less is asked for.
    by_magnitude(lm, 0.1)
    assert sum(zeros(lm).values()) == round(0.7 * numel(lm.sites()))


@pytest.mark.parametrize("arguments", [{"method": Magnitude(sparsity=0.5)}, {"method": Magnitude(), "keep": 0.5}])
def test_a_matrix_of_which_nothing_is_left_stays_so_and_counts(arguments: dict) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    first = lm.sites()[0]
    Compress(method=LnStructured(sparsity=0.999), targets=(first.name,)).apply(lm, None)
    outcome = Compress(**arguments, allocate="global").apply(lm, None)
    gone = zeros(lm)
    assert gone[first.name] == numel([first])
    assert outcome.plan[first.name] is None
    if "keep" not in arguments:
        assert sum(gone.values()) == round(0.5 * numel(lm.sites()))


def test_what_is_kept_on_disk_serves_another_sparsity_and_every_shot(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))

    def shots() -> LanguageModel:
        lm = BY_NAME["bert-classifier"].lm()
        for sparsity in (0.3, 0.6):
            step = Compress(method=KfacPrune(sparsity=sparsity), allocate="global")
            step.apply(lm, data_for(lm))
        return lm

    fresh = shots()
    # `laconic.compress` is also a function, which hides the package of that name.
    monkeypatch.setattr(sys.modules["laconic.compress.matrices"], "collect_stats", None)
    again = shots()
    assert torch.equal(logits(again), logits(fresh))
    assert zeros(again) == zeros(fresh)


def test_a_tied_matrix_is_scored_once() -> None:
    lm = BY_NAME["llama-tied"].lm()
    sites = lm.sites(("embedding", "head"))
    by_magnitude(lm, 0.5, targets=("embedding", "head"))
    assert sum(zeros(lm, ("embedding", "head")).values()) == round(0.5 * numel(sites))
    assert torch.isfinite(logits(lm)).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": Svd(rank=2)}, "'svd' has no score for each; use a method like magnitude"),
        ({"method": KfacSvd(), "keep": 0.5}, "'kfac-svd' has no score for each"),
        ({"method": Magnitude(pattern="2:4")}, "allocate: global does not apply to the pattern 2:4"),
        ({"method": Magnitude(sparsity=0.5, within="row")}, "magnitude.within must be matrix where allocate is global"),
        ({"method": Magnitude()}, "needs a size"),
        ({"method": Magnitude(sparsity=0.5), "keep": 0.5}, "its size is set by sparsity"),
        ({"method": Magnitude(sparsity=0.5), "currency": "macs"}, "currency must be left out"),
        ({"method": Magnitude(sparsity=0.5), "error": 0.1}, "error must be left out"),
    ],
)
def test_what_has_no_global_threshold_is_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Compress(**arguments, allocate="global")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": Magnitude(sparsity=0.9, cap=0.5)}, r"magnitude.sparsity must be at most 0\.[45]\d+, as no matrix"),
        (
            {"method": Magnitude(sparsity=0.99999)},
            r"at most 0\.99\d+, as no matrix may lose every weight",
        ),
        ({"method": Magnitude(cap=0.5), "keep": 0.2}, r"keep must be at least 0\.5\d+, as no matrix may lose more"),
        ({"method": Magnitude(), "keep": 0.01}, r"keep must be more than 0\.03125, which the masks of 'magnitude'"),
    ],
)
def test_a_total_that_no_caps_can_meet_names_the_largest(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Compress(**arguments, allocate="global").apply(BY_NAME["bert-classifier"].lm(), None)


def test_a_weight_that_is_no_number_names_its_matrix() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    site = lm.sites()[3]
    with torch.no_grad():
        site.parameter[1, 1] = float("nan")
    with pytest.raises(UserError, match=f"cannot prune '{site.name}'"):
        by_magnitude(lm, 0.5)


def test_data_is_asked_for_where_scores_need_it() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    step = Compress(method=Wanda(sparsity=0.5, within="matrix"), allocate="global")
    assert step.needs_data
    with pytest.raises(UserError, match="needs calibration data"):
        step.apply(lm, None)
    assert isinstance(data_for(lm), Calibration)


@pytest.mark.parametrize("numel_of_one", [1, 3, 1000, 147_456, 16_777_216])
def test_a_fraction_stands_for_one_number_of_zeros(numel_of_one: int) -> None:
    for zeros_there in {0, 1, numel_of_one // 3, numel_of_one - 1} - {numel_of_one}:
        fraction = sparsity_of(zeros_there, numel_of_one)
        assert round(fraction * numel_of_one) == zeros_there and fraction < 1
    assert sparsity_of(5, 10) == 0.5
