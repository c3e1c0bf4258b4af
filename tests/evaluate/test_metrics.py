"""Bootstrap intervals, and means of means over groups of rows."""

import numpy as np
import pytest

from laconic.calibrate.corpus import Corpus, Example
from laconic.evaluate.metrics import (
    MAX_RESAMPLED_ROWS,
    MIN_RESAMPLES,
    Scores,
    Share,
    interval,
    limit_evenly,
    macro_weights,
    resample_rows,
    weighted_mean,
)


def mean(table: Scores) -> float:
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
    assert sum(1 for _ in resample_rows(MAX_RESAMPLED_ROWS // 300, 0)) == 300
    assert MIN_RESAMPLES == 200


def test_a_share_is_a_metric_that_knows_which_rows_are_right():
    right = Share(lambda table: table[:, 0] == table[:, 1])
    table = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    assert right(table) == 0.6 and right.right(table).tolist() == [True, False, True, False, True]


GROUPS = ["a/x", "a/x", "a/x", "a/y", "b/z"]
RIGHT = [1.0, 0.0, 0.0, 1.0, 0.0]


def test_a_mean_of_means_by_hand():
    table = np.stack((RIGHT, macro_weights(GROUPS).numpy(), [0, 0, 0, 0, 1]), axis=1)
    # Relation x has a third, y one; so corpus a has two thirds, and b nothing.
    assert weighted_mean(lambda table: table[:, 0], 1)(table) == pytest.approx((1 / 3 + 1) / 2 / 2)
    assert weighted_mean(lambda table: table[:, 0], 1, (2, 0))(table) == pytest.approx((1 / 3 + 1) / 2)
    assert weighted_mean(lambda table: table[:, 0], 1, (2, 1))(table) == 0
    assert macro_weights(GROUPS).tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 2])


def test_equal_groups_have_the_plain_mean():
    right = np.random.default_rng(0).integers(2, size=60).astype(float)
    table = np.stack((right, macro_weights([f"g{at % 6}" for at in range(60)]).numpy()), axis=1)
    assert weighted_mean(lambda table: table[:, 0], 1)(table) == pytest.approx(right.mean())


def test_a_group_that_a_resample_misses_leaves_a_finite_interval():
    table = np.stack((RIGHT, macro_weights(GROUPS).numpy(), [0, 0, 0, 0, 1]), axis=1)
    found = interval(weighted_mean(lambda table: table[:, 0], 1, (2, 1)), table)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_rows_are_drawn_evenly_and_stay_in_order():
    groups = ["x"] * 5 + ["y"] + ["z"] * 3
    rows = tuple(Example(str(at), group=group) for at, group in enumerate(groups))
    corpus = Corpus("c", "test", rows)
    assert [row.text for row in limit_evenly(corpus, 5).examples] == ["0", "1", "5", "6", "7"]
    assert [row.text for row in limit_evenly(corpus, 2).examples] == ["0", "5"]
    assert limit_evenly(corpus, None) is corpus
    assert len(limit_evenly(corpus, 99).examples) == 9
