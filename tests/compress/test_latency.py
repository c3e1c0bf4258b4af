"""Budgets of time, on a clock of our own: prices, what is fixed, and the correction by what a plan really took."""

import copy
from pathlib import Path

import pytest

from laconic.allocate.gemm_timings import Product, ProductTimes
from laconic.calibrate import LayerStats, collect_stats
from laconic.calibrate.layer_stats import concatenate_problems
from laconic.calibrate.passes import LayerTiming, Profile, Workload
from laconic.compress import Compress, pricing
from laconic.compress.pricing import Prices, relative_latency
from laconic.compress.solve_groups import all_groups, find_layer_sets
from laconic.errors import UserError
from laconic.methods import Candidates, KfacSvd
from laconic.model import LanguageModel
from tests.architectures import BY_NAME
from tests.compress.test_matrices import data_for

ROWS = 50
CALL = 2000
FIXED = 0.4
"""The share of a dense pass that no matrix takes."""


def nanoseconds(product: Product) -> int:
    """As linear as the table assumes: below its first knot nothing gets faster."""
    return CALL + product.rows * max(8, product.out_features) * max(8, product.in_features)


@pytest.fixture
def times(tmp_path: Path) -> ProductTimes:
    return ProductTimes(lambda asked: [[1e-9 * nanoseconds(product) for product in asked]] * 3, tmp_path / "t.json", {})


def profile_of(lm: LanguageModel, calls: int = 1) -> Profile:
    dense = {site.name: calls * nanoseconds(Product(ROWS, *site.shape)) for site in lm.sites()}
    whole = sum(dense.values()) / (1 - FIXED)
    return Profile(whole * 1e-9, {name: LayerTiming((ROWS,) * calls, time / whole) for name, time in dense.items()})


def ladders_of(lm: LanguageModel, known: dict[str, LayerStats], share: bool = False) -> dict[str, Candidates]:
    from laconic.calibrate import Problem

    single = {site.name: Problem(weight=site.weight(), stats=known[site.name]) for site in lm.sites()}
    groups = all_groups(find_layer_sets(lm.sites(), share))
    problems = {group.name: concatenate_problems([single[site.name] for site in group.sites]) for group in groups}
    return {name: KfacSvd(multiple=1).candidates(problem.weight, problem.stats) for name, problem in problems.items()}


def step(keep: float, **more: object) -> Compress:
    return Compress(method=KfacSvd(multiple=1), keep=keep, allocate="spectrum", currency="latency", **more)


@pytest.mark.parametrize("calls", [1, 3])
def test_a_rung_costs_its_products_and_the_rest_of_the_pass_is_fixed(times: ProductTimes, calls: int) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    ladders = ladders_of(lm, collect_stats(lm, data_for(lm), step(0.5).needs, lm.sites()))
    groups = all_groups(find_layer_sets(lm.sites(), False))
    prices = Prices(profile_of(lm, calls), times)
    priced = prices.with_times(groups, ladders)
    for group in groups:
        for before, candidate in zip(ladders[group.name].all, priced[group.name].all, strict=True):
            expected = sum(nanoseconds(Product(ROWS, *product)) for product in candidate.products)
            assert candidate.nanoseconds == pytest.approx(calls * expected, rel=1e-3)
            assert (candidate.method, candidate.loss) == (before.method, before.loss)
    budget = prices.budget(list(priced.values()), 0.7)
    dense = sum(
        budget.cost(next(candidate for candidate in ladder.all if candidate.method is None))
        for ladder in priced.values()
    )
    assert budget.fixed == pytest.approx(FIXED * budget.dense, rel=1e-6)
    assert budget.dense - budget.fixed == dense
    assert budget.limit == pytest.approx(0.7 * budget.dense - budget.fixed, abs=1)


def test_a_common_input_factor_is_paid_for_once(times: ProductTimes) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    ladders = ladders_of(lm, collect_stats(lm, data_for(lm), step(0.5).needs, lm.sites()), share=True)
    group = next(layers.joint[0] for layers in find_layer_sets(lm.sites(), True) if len(layers.alternatives) > 1)
    priced = Prices(profile_of(lm), times).with_times([group], ladders)[group.name]
    out, width = group.rows[0], group.shape[1]
    for candidate in priced.all[:-1]:
        rank = candidate.method.rank
        first, last = nanoseconds(Product(ROWS, rank, width)), nanoseconds(Product(ROWS, out, rank))
        assert candidate.nanoseconds == pytest.approx(first + len(group.sites) * last, rel=1e-3)
    assert priced.all[-1].nanoseconds == len(group.sites) * nanoseconds(Product(ROWS, out, width))


def test_prices_are_corrected_by_what_a_plan_took(times: ProductTimes) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    ladders = ladders_of(lm, collect_stats(lm, data_for(lm), step(0.5).needs, lm.sites()))
    groups = all_groups(find_layer_sets(lm.sites(), False))
    prices = Prices(profile_of(lm), times)
    priced = prices.with_times(groups, ladders)
    budget = prices.budget(list(priced.values()), 0.7)
    chosen = [priced[group.name].all[at % 2 - 1] for at, group in enumerate(groups)]
    compressed = sum(candidate.nanoseconds for candidate in chosen if candidate.method)
    left = sum(candidate.nanoseconds for candidate in chosen if not candidate.method)
    assert compressed and left
    slower = (budget.fixed + left + 1.25 * compressed) / budget.dense
    rescale = prices.rescale(chosen, budget, slower)
    assert rescale.scale == pytest.approx(1.25)
    again = rescale.with_times(groups, ladders)
    for group in groups:
        for old, new in zip(priced[group.name].all, again[group.name].all, strict=True):
            assert new.nanoseconds == pytest.approx((1.25 if old.method else 1) * old.nanoseconds, abs=1)
    assert prices.rescale(chosen, budget, 0.5 * FIXED) is prices
    assert prices.rescale([candidate for candidate in chosen if not candidate.method], budget, 1.0) is prices


@pytest.mark.parametrize(("slower", "keeps"), [(1.0, (0.9, 0.75)), (1.4, (0.95, 0.88))])
def test_the_plan_takes_the_time_that_was_asked_for(
    times: ProductTimes, monkeypatch: pytest.MonkeyPatch, slower: float, keeps: tuple[float, ...]
) -> None:
    """Also where compressed matrices take longer in the model than in the table."""
    lm = BY_NAME["bert-classifier"].lm()
    profile = profile_of(lm)
    whole = 1e9 * profile.seconds

    def took(pricing, groups, chosen):
        parts = (
            (slower if candidate.method else 1)
            * sum(nanoseconds(Product(ROWS, *product)) for product in candidate.products)
            for candidate in chosen.values()
        )
        return (FIXED * whole + sum(parts)) / whole

    monkeypatch.setattr(pricing, "profile", lambda *_: profile)
    monkeypatch.setattr(pricing, "product_times", lambda device: times)
    monkeypatch.setattr(pricing, "relative_latency", took)
    known = collect_stats(lm, data_for(lm), step(0.5).needs, lm.sites())
    for keep in keeps:
        small = LanguageModel.of(copy.deepcopy(lm.model))
        outcome = step(keep, workload=Workload(batch=2, length=25)).apply_with(small, known)
        shapes = {site.name: site.shape for site in lm.sites()}
        taken = FIXED * whole
        for name, method in outcome.plan.items():
            m, n = shapes[name]
            thin = ((method.rank, n), (m, method.rank)) if method else ((m, n),)
            taken += (slower if method else 1) * sum(nanoseconds(Product(ROWS, *product)) for product in thin)
        assert taken / whole == pytest.approx(keep, rel=0.03)
    with pytest.raises(UserError, match=r"keep must be at least 0\.\d+, the fraction that the smallest sizes keep"):
        step(FIXED / 2).apply_with(lm, known)


def test_a_plan_is_timed_beside_the_original_and_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.calibrate import Problem
    from laconic.progress import silent

    lm = BY_NAME["bert-classifier"].lm()
    known = collect_stats(lm, data_for(lm), step(0.5).needs, lm.sites())
    groups = all_groups(find_layer_sets(lm.sites(), False))
    chosen = {name: ladder.all[0] for name, ladder in ladders_of(lm, known).items()}
    problems = {site.name: Problem(weight=site.weight(), stats=known[site.name]) for site in lm.sites()}
    seen: list[int] = []

    def time_call(work, device):
        work()
        # The compressed model comes second.
        return 8.0 if len(seen) % 2 else 2.0

    monkeypatch.setattr(pricing, "time_call", time_call)
    monkeypatch.setattr(pricing, "forward", lambda model, inputs: seen.append(sum(1 for _ in model.model.modules())))
    timed = pricing.LatencyPricing(lm, Workload(batch=1, length=4), problems, silent)
    assert relative_latency(timed, groups, chosen) == 0.25
    assert len(seen) == 2 * (pricing.WARM_UP + pricing.ROUNDS)
    assert seen[1] > seen[0] == sum(1 for _ in lm.model.modules())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"keep": {"ffn": 0.5}}, "keep must be one number where currency is latency"),
        ({"keep": 0.5, "allocate": "uniform"}, "allocate must be spectrum where currency is latency; got 'uniform'"),
    ],
)
def test_what_cannot_be_shared_out_is_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Compress(**{"method": KfacSvd(), "allocate": "spectrum", "currency": "latency", **arguments})
