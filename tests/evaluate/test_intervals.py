"""The bootstrap against what is known in closed form."""

import numpy as np
import pytest

from laconic.evaluate.intervals import FEWEST_RESAMPLES, LINES, Share, Table, interval, resamples


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


def test_large_tables_get_fewer_resamples():
    assert sum(1 for _ in resamples(LINES // 300, 0)) == 300
    assert FEWEST_RESAMPLES == 200


def test_a_share_is_a_metric_that_knows_which_rows_are_right():
    right = Share(lambda table: table[:, 0] == table[:, 1])
    table = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    assert right(table) == 0.6 and right.right(table).tolist() == [True, False, True, False, True]
