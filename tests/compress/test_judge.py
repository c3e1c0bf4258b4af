"""The KL divergence from the original, and the comparison of two models beyond chance."""

import math

import pytest
import torch

from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.model import divergence, predict
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches


def of(*totals: float, counts: tuple[int, ...] = (1, 1, 1)) -> Divergences:
    return Divergences(torch.tensor(totals).double(), torch.tensor(counts).double())


def test_the_lead_is_the_gain_over_its_standard_error():
    """Gains 1, 2, 3 with one prediction each: 2 on average, and 1 from text to text."""
    assert of(1, 1, 1).lead(of(2, 3, 4)) == pytest.approx(2 / math.sqrt(1 / 3))
    assert of(1, counts=(1,)).lead(of(2, counts=(1,))) == -math.inf
    # Of 1 + 2 + 3 predictions a gain of 2 each is what all texts have.
    assert of(0, 0, 0, counts=(1, 2, 3)).lead(of(2, 4, 6, counts=(1, 2, 3))) == math.inf


@pytest.mark.parametrize(
    ("mine", "others"), [((1, 2, 3), (1, 2, 3)), ((3, 3, 3), (1, 2, 3)), ((math.nan, 0, 0), (1, 1, 1))]
)
def test_nothing_gained_is_no_lead(mine: tuple[float, ...], others: tuple[float, ...]):
    assert of(*mine).lead(of(*others)) == -math.inf


def test_numbers_lead_what_gives_none():
    assert of(1, 2, 3).lead(of(math.nan, 0, 0)) == math.inf
    assert of(math.nan, 0, 0).lead(of(math.nan, 0, 0)) == -math.inf
    assert of(math.nan, 0, 0).mean == math.inf


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
def test_texts_add_up_to_all_predictions(name: str):
    one, other, batches = BY_NAME[name].lm(seed=0), BY_NAME[name].lm(seed=1), labelled_batches(BY_NAME[name].lm(), 3)
    each = KLMetric(one, batches).each(other)
    whole = torch.cat([divergence(predict(one, batch)[0], predict(other, batch)[0]) for batch in batches])
    assert len(each.totals) == sum(len(batch["input_ids"]) for batch in batches)
    assert each.counts.sum() == len(whole)
    assert each.mean == pytest.approx(whole.double().mean().item(), rel=1e-6)
