"""Means of means by hand, and rows drawn evenly."""

import numpy as np
import pytest

from laconic.calibrate.corpus import Corpus, Example
from laconic.evaluate.intervals import interval
from laconic.evaluate.macro import evenly, shares, weighted

GROUPS = ["a/x", "a/x", "a/x", "a/y", "b/z"]
RIGHT = [1.0, 0.0, 0.0, 1.0, 0.0]


def test_a_mean_of_means_by_hand():
    table = np.stack((RIGHT, shares(GROUPS).numpy(), [0, 0, 0, 0, 1]), axis=1)
    # Relation x has a third, y one; so corpus a has two thirds, and b nothing.
    assert weighted(lambda table: table[:, 0], 1)(table) == pytest.approx((1 / 3 + 1) / 2 / 2)
    assert weighted(lambda table: table[:, 0], 1, (2, 0))(table) == pytest.approx((1 / 3 + 1) / 2)
    assert weighted(lambda table: table[:, 0], 1, (2, 1))(table) == 0
    assert shares(GROUPS).tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 2])


def test_equal_groups_have_the_plain_mean():
    right = np.random.default_rng(0).integers(2, size=60).astype(float)
    table = np.stack((right, shares([f"g{at % 6}" for at in range(60)]).numpy()), axis=1)
    assert weighted(lambda table: table[:, 0], 1)(table) == pytest.approx(right.mean())


def test_a_group_that_a_resample_misses_leaves_a_finite_interval():
    table = np.stack((RIGHT, shares(GROUPS).numpy(), [0, 0, 0, 0, 1]), axis=1)
    found = interval(weighted(lambda table: table[:, 0], 1, (2, 1)), table)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_rows_are_drawn_evenly_and_stay_in_order():
    groups = ["x"] * 5 + ["y"] + ["z"] * 3
    rows = tuple(Example(str(at), group=group) for at, group in enumerate(groups))
    corpus = Corpus("c", "test", rows)
    assert [row.text for row in evenly(corpus, 5).examples] == ["0", "1", "5", "6", "7"]
    assert [row.text for row in evenly(corpus, 2).examples] == ["0", "5"]
    assert evenly(corpus, None) is corpus
    assert len(evenly(corpus, 99).examples) == 9
