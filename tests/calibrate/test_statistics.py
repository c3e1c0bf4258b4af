"""Statistics equal what they abbreviate, add up over shards, and treat token numbers as one-hot rows."""

import pytest
import torch
from torch.nn import functional

from laconic.calibrate import AbsMax, AbsMean, Fisher, GradCovariance, InputCovariance, LayerStats, Mean
from laconic.calibrate.statistics import FULL_MOMENT_LIMIT, InputStatistic

CPU = torch.device("cpu")
INPUT_KINDS = [InputCovariance, Mean, AbsMean, AbsMax]


def value(statistic: InputStatistic) -> torch.Tensor:
    return statistic.matrix if isinstance(statistic, InputCovariance) else statistic.vector


EXPECTED = {
    InputCovariance: lambda x: x.T @ x / len(x),
    Mean: lambda x: x.mean(0),
    AbsMean: lambda x: x.abs().mean(0),
    AbsMax: lambda x: x.abs().amax(0),
}


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_batches_and_shards_add_up(kind):
    x = torch.randn(50, 6, dtype=torch.float64)
    whole, left, right = (kind.empty(6, False, CPU) for _ in range(3))
    whole.update(x)
    left.update(x[:10])
    left.update(x[10:30])
    right.update(x[30:])
    left.merge(right)
    assert torch.allclose(value(left), value(whole))
    assert torch.allclose(value(whole), EXPECTED[kind](x.double()))
    assert left.count == whole.count == 50


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_token_numbers_count_as_one_hot_rows(kind):
    tokens = torch.tensor([1, 3, 3, 0])
    looked_up, multiplied = kind.empty(5, True, CPU), kind.empty(5, False, CPU)
    looked_up.update(tokens)
    multiplied.update(functional.one_hot(tokens, 5).float())
    full = value(multiplied)
    assert torch.allclose(value(looked_up), full.diagonal() if full.ndim == 2 else full)


def test_an_empty_batch_changes_nothing():
    statistic = AbsMax.empty(3, False, CPU)
    statistic.update(torch.empty(0, 3))
    assert torch.equal(statistic.vector, torch.zeros(3).double())


def test_output_gram_is_normalised_by_predictions():
    g = torch.randn(12, 4)
    statistic = GradCovariance.empty((4, 3), CPU)
    statistic.update(torch.randn(12, 3), g)
    statistic.count += 5
    assert torch.allclose(statistic.matrix, (g.double().T @ g.double()) / 5)


def test_a_vocabulary_sized_output_keeps_the_diagonal_only():
    statistic = GradCovariance.empty((FULL_MOMENT_LIMIT + 1, 3), CPU)
    assert statistic.total.shape == (FULL_MOMENT_LIMIT + 1,)
    g = torch.randn(2, FULL_MOMENT_LIMIT + 1)
    statistic.update(torch.randn(2, 3), g)
    assert torch.allclose(statistic.total, g.double().square().sum(0))


def test_fisher_squares_the_gradient_of_each_sequence_not_of_the_batch():
    x, g = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    statistic = Fisher.empty((4, 3), CPU)
    for x_row, g_row in zip(x, g, strict=True):
        statistic.update(x_row, g_row)
    statistic.count += 2
    per_sequence = torch.einsum("bto,bti->boi", g.double(), x.double())
    assert torch.allclose(statistic.matrix, per_sequence.square().sum(0) / 2)


def test_fisher_of_an_embedding_equals_that_of_one_hot_rows():
    tokens, g = torch.tensor([2, 0, 2]), torch.randn(3, 4)
    looked_up, multiplied = Fisher.empty((4, 5), CPU), Fisher.empty((4, 5), CPU)
    looked_up.update(tokens, g)
    multiplied.update(functional.one_hot(tokens, 5).float(), g)
    assert torch.allclose(looked_up.total, multiplied.total)


def test_known_is_asked_by_type_and_joined():
    gram, mean = InputCovariance.empty(2, False, CPU), Mean.empty(2, False, CPU)
    known = LayerStats([gram]) | LayerStats([mean])
    assert known[InputCovariance] is gram
    assert known[Mean] is mean
    assert Fisher not in known
