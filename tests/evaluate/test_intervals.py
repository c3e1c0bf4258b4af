"""The bootstrap against what is known in closed form."""

import numpy as np
import pytest

from laconic.evaluate.intervals import FEWEST_RESAMPLES, LINES, Table, _resamples, difference, interval


def mean(table: Table) -> float:
    return float(table[:, 0].mean())


def test_the_interval_of_a_mean_has_its_standard_error():
    table = np.random.default_rng(0).normal(size=(400, 1))
    found = interval(mean, table)
    error = 1.96 * table.std() / 20
    assert found.value == table.mean()
    assert found.low == pytest.approx(table.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(table.mean() + error, abs=0.15 * error)
    assert found == interval(mean, table) and found != interval(mean, table, seed=1)


def test_a_difference_is_paired():
    generator = np.random.default_rng(0)
    reference = 10 * generator.normal(size=(200, 1))
    table = reference + 0.1 + 0.1 * generator.normal(size=(200, 1))
    found = difference(mean, table, reference)
    # Unpaired, the interval would be about 4 wide.
    assert 0.07 < found.low < found.value < found.high < 0.13
    assert found.p < 0.005


def test_no_difference_has_p_one_and_a_doubtful_one_is_between():
    table = np.random.default_rng(0).normal(size=(100, 1))
    same = difference(mean, table, table)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    shifted = table + np.random.default_rng(1).normal(size=(100, 1))
    found = difference(mean, shifted, table)
    z = abs(found.value) / (np.std(shifted - table) / 10)
    assert found.p == pytest.approx(2 * (1 - _normal(z)), abs=0.06)


def _normal(z: float) -> float:
    from scipy.stats import norm

    return float(norm.cdf(z))


def test_large_tables_get_fewer_resamples():
    assert sum(1 for _ in _resamples(LINES // 300, 0)) == 300
    assert FEWEST_RESAMPLES == 200


def test_tables_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        difference(mean, np.zeros((2, 1)), np.zeros((3, 1)))
