"""Paired tests against formulas, against chance alone, and where there is next to nothing to test."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import binomtest, chi2, norm

from laconic.evaluate.glue import f1
from laconic.evaluate.metrics import Metric, Scores, Share, weighted_mean
from laconic.evaluate.paired import DETECTABLE, Difference, Verdict, count_discordant, difference, mcnemar_p, verdict
from laconic.evaluate.perplexity import METRICS as PERPLEXITY

RIGHT = Share(lambda table: table[:, 0] == table[:, 1])


def mean(table: Scores) -> float:
    return float(table[:, 0].mean())


def judged(*right: int) -> Scores:
    """A table of these rows right (1) and wrong (0)."""
    return np.array([[1.0, float(one)] for one in right])


def test_a_difference_is_paired():
    generator = np.random.default_rng(0)
    reference = 10 * generator.normal(size=(200, 1))
    table = reference + 0.1 + 0.1 * generator.normal(size=(200, 1))
    found = difference(mean, table, reference)
    # Unpaired, the interval would be about 4 wide.
    assert 0.07 < found.low < found.value < found.high < 0.13
    assert found.p < 0.005


def test_a_doubtful_difference_has_the_p_of_its_standard_error():
    table = np.random.default_rng(0).normal(size=(100, 1))
    shifted = table + np.random.default_rng(1).normal(size=(100, 1))
    found = difference(mean, shifted, table)
    error = np.std(shifted - table) / 10
    assert found.p == pytest.approx(2 * norm.sf(abs(found.value) / error), abs=0.06)
    assert found.detectable == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * error, rel=0.1)


def test_mcnemar_is_the_exact_binomial_and_near_its_chi_squared():
    for won, lost in ((0, 5), (0, 6), (3, 11), (12, 12), (40, 70), (900, 1000)):
        assert mcnemar_p(won, lost) == pytest.approx(binomtest(won, won + lost).pvalue) == mcnemar_p(lost, won)
    assert mcnemar_p(0, 6) == pytest.approx(2 / 2**6) and mcnemar_p(0, 5) > 0.05
    # McNemar 1947 with Edwards' correction for continuity.
    statistic = (abs(40 - 70) - 1) ** 2 / (40 + 70)
    assert mcnemar_p(40, 70) == pytest.approx(chi2.sf(statistic, df=1), rel=0.05)


def test_a_share_has_the_p_of_its_discordant_rows():
    table, reference = judged(1, 1, 1, 0, 0, 1, 1, 1, 1), judged(1, 0, 0, 1, 0, 0, 0, 0, 1)
    assert count_discordant(RIGHT, table, reference) == (5, 1)
    found = difference(RIGHT, table, reference)
    assert found.value == pytest.approx(4 / 9) and found.p == pytest.approx(binomtest(1, 6).pvalue)


@pytest.mark.parametrize("metric", [RIGHT, f1, mean, PERPLEXITY["perplexity"]])
def test_a_model_does_not_differ_from_itself(metric: Metric):
    table = np.random.default_rng(0).integers(2, size=(50, 4)).astype(float)
    found = difference(metric, table, table)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    # Six rows that all speak for one model are the least that shows.
    assert found.detectable == (6 / 50 if metric is RIGHT else None)


@pytest.mark.parametrize("metric", [RIGHT, mean])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_so_few_rows_show_nothing(metric: Metric, rows: int):
    found = difference(metric, judged(*[1] * rows), judged(*[0] * rows) * [5.0, 1.0])
    assert abs(found.value) >= 1 and found.p > 0.05 and found.detectable is None
    assert found.least_p == 2 / 2**rows and verdict(found.p, found.least_p) is Verdict.CANNOT_TELL


@pytest.mark.parametrize("metric", [RIGHT, mean])
def test_six_rows_that_all_speak_for_one_model_show_it(metric: Metric):
    found = difference(metric, judged(*[1] * 6), judged(*[0] * 6) * [5.0, 1.0])
    assert found.p == found.least_p == 2 / 2**6
    assert verdict(found.p, found.least_p) is Verdict.CHANGE
    assert verdict(1.0, found.least_p) is Verdict.NOISE


@pytest.mark.parametrize("seed", range(20))
def test_few_rows_have_the_p_of_every_exchange(seed: int):
    generator = np.random.default_rng(seed)
    table, reference = generator.exponential(size=(2, 5, 1)) * np.array([[[9.0]], [[1.0]]]) + [[[9.0]], [[0.0]]]
    # Every row is larger in one model: only to exchange none of them, or all, is as extreme.
    assert difference(mean, table, reference, seed).p == 2 / 2**5


def test_rows_without_a_part_in_a_figure_do_not_count():
    nats = np.array([[90.0, 10, 8, 40]] * 4 + [[0.0, 0, 0, 0]] * 50)
    for metric in PERPLEXITY.values():
        found = difference(metric, nats * [9, 1, 1, 1], nats)
        assert (found.p, found.least_p, found.detectable) == (2 / 2**4, 2 / 2**4, None)
    # Right or wrong, weight, group: three rows of group 1 among fifty.
    table = np.array([[1.0, 1.0, 0.0]] * 47 + [[1.0, 1.0, 1.0]] * 3)
    wrong = table * [0.0, 1.0, 1.0]
    figure = weighted_mean(lambda table: table[:, 0], 1, (2, 1))
    assert difference(figure, table, wrong).least_p == 2 / 2**3
    assert difference(weighted_mean(lambda table: table[:, 0], 1), table, wrong).least_p == 2 / 2**50


def test_all_right_against_all_wrong_is_as_sure_as_its_rows_allow():
    assert difference(RIGHT, judged(*[1] * 8), judged(*[0] * 8)) == Difference(
        1.0, 1.0, 1.0, 2 / 2**8, 2 / 2**8, pytest.approx(DETECTABLE * 8**0.5 / 8)
    )
    both = difference(RIGHT, judged(*[1] * 8), judged(*[1] * 8))
    assert (both.p, both.detectable) == (1.0, 6 / 8)


def models(generator: np.random.Generator, rows: int, gap: float = 0.0) -> tuple[Scores, Scores]:
    """Two models of one accuracy (or `gap` apart) that mostly err on the same rows."""
    truth = generator.integers(2, size=rows)
    hard = generator.random(rows)
    wrong = [(hard + 0.3 * generator.normal(size=rows)) > level for level in (0.8 + gap, 0.8)]
    ours, theirs = (np.stack((truth, truth ^ error), axis=1).astype(float) for error in wrong)
    return ours, theirs


@pytest.mark.parametrize(("metric", "rows"), [(RIGHT, 25), (RIGHT, 300), (f1, 25), (f1, 60), (mean, 12)])
def test_chance_alone_is_rarely_taken_for_a_change(metric: Metric, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("laconic.evaluate.metrics"), "RESAMPLES", 99)
    monkeypatch.setattr(import_module("laconic.evaluate.metrics"), "MIN_RESAMPLES", 99)
    generator = np.random.default_rng(0)
    trials = 200
    pairs = [models(generator, rows) for _ in range(trials)]
    if metric is mean:
        pairs = [(generator.exponential(size=(rows, 1)), generator.exponential(size=(rows, 1))) for _ in pairs]
    mistaken = sum(difference(metric, *pair, seed=at).p < 0.05 for at, pair in enumerate(pairs))
    # Two standard errors above 5 %.
    assert mistaken / trials <= 0.05 + 2 * (0.05 * 0.95 / trials) ** 0.5


def test_a_detectable_change_is_detected_in_four_cases_of_five(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("laconic.evaluate.metrics"), "RESAMPLES", 9)
    monkeypatch.setattr(import_module("laconic.evaluate.metrics"), "MIN_RESAMPLES", 9)
    generator = np.random.default_rng(0)
    found = [difference(RIGHT, *models(generator, 400, gap=0.1)) for _ in range(200)]
    gap, shown = (np.mean([one.value for one in found]), np.mean([one.detectable for one in found]))
    assert gap == pytest.approx(shown, rel=0.05), "the simulation is of a change as large as is detectable"
    assert 0.65 < np.mean([one.p < 0.05 for one in found]) < 0.9


def test_tables_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        difference(mean, np.zeros((2, 1)), np.zeros((3, 1)))
