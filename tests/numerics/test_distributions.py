"""Each distribution against values worked out by hand, and against torch's own."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN, Distribution

EVERY = (CATEGORICAL, BERNOULLI, GAUSSIAN)
P = torch.tensor([[0.3, -1.0, 2.0], [5.0, 0.0, -0.5]], dtype=torch.float64)
Q = torch.tensor([[-0.4, 0.7, 2.5], [-3.0, 0.1, 0.0]], dtype=torch.float64)


def in_torch(distribution: Distribution, values: torch.Tensor) -> tuple[torch.distributions.Distribution, bool]:
    """torch's own, and whether it has one factor for each value."""
    if distribution is CATEGORICAL:
        return Categorical(logits=values), False
    return (Bernoulli(logits=values) if distribution is BERNOULLI else Normal(values, 1.0)), True


def names(distribution: Distribution) -> str:
    return type(distribution).__name__


@pytest.mark.parametrize("distribution", EVERY, ids=names)
def test_divergence_and_loss_are_those_of_torch(distribution: Distribution) -> None:
    (p, factors), (q, _) = (in_torch(distribution, values) for values in (P, Q))
    torch.manual_seed(0)
    kl, labels = kl_divergence(p, q), p.sample()
    nll = -q.log_prob(labels)
    if factors:
        kl, nll = kl.sum(-1), nll.sum(-1)
    # A Gaussian's loss leaves out ½ log 2π of each number.
    constant = 1.5 * math.log(2 * math.pi) if distribution is GAUSSIAN else 0.0
    torch.testing.assert_close(distribution.divergence(P, Q), kl)
    torch.testing.assert_close(distribution.loss(Q, labels) + constant, nll)


def test_bernoullis_by_hand() -> None:
    # Two labels of probability ½ that are taken for 3/4 and 1/4: twice ½ ln((1/2)/(3/4)) + ½ ln((1/2)/(1/4)).
    even, odd = torch.zeros(1, 2), torch.tensor([[math.log(3.0), -math.log(3.0)]])
    by_hand = 2 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert BERNOULLI.divergence(even, odd).item() == pytest.approx(by_hand, rel=1e-6)
    # At τ = 2 the odds are √3 to 1, and the factor is 4.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    at_two = 4 * 2 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert BERNOULLI.divergence(even, odd, 2.0).item() == pytest.approx(at_two, rel=1e-6)
    # Every label from .50 to .993, which a softmax would not see.
    moved = torch.full((1, 2), 5.0)
    assert BERNOULLI.divergence(even, moved).item() == pytest.approx(2 * 1.8136, rel=1e-4)
    assert CATEGORICAL.divergence(even, moved).item() == pytest.approx(0, abs=1e-12)


def test_an_excluded_class_counts_for_nothing() -> None:
    possible = torch.tensor([True, False, True, False])
    p, q = (torch.randn(2, 4, dtype=torch.float64).masked_fill(~possible, -torch.inf) for _ in range(2))
    q.requires_grad_()
    kl, loss = CATEGORICAL.divergence(p, q, 2.0), CATEGORICAL.loss(q, torch.tensor([0, 2]))
    torch.testing.assert_close(kl, CATEGORICAL.divergence(p[:, possible], q[:, possible], 2.0))
    torch.testing.assert_close(loss, CATEGORICAL.loss(q[:, possible], torch.tensor([0, 1])))
    (gradient,) = torch.autograd.grad(kl.sum() + loss.sum(), q)
    assert gradient.isfinite().all() and not gradient[:, ~possible].any()
    drawn = CATEGORICAL.draw(q.expand(50, 2, 4).flatten(0, 1), torch.Generator().manual_seed(0))
    assert possible[drawn].all() and len(drawn.unique()) == 2
    axes = torch.stack(list(CATEGORICAL.fisher_factor(q)), -1)
    probabilities = q.detach().softmax(-1)
    fisher = probabilities.diag_embed() - probabilities[:, :, None] * probabilities[:, None, :]
    torch.testing.assert_close(axes @ axes.mT, fisher)


def test_a_categorical_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): ¾ ln(3/2) + ¼ ln(1/2).
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert CATEGORICAL.divergence(teacher, student).item() == pytest.approx(expected, rel=1e-6)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    at_two = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert CATEGORICAL.divergence(teacher, student, 2.0).item() == pytest.approx(at_two, rel=1e-6)


def test_a_gaussian_by_hand() -> None:
    means = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert GAUSSIAN.divergence(means, torch.zeros(2, 2), 3.0).tolist() == [0.5 * (1 + 4), 0.0]


@pytest.mark.parametrize("distribution", [CATEGORICAL, BERNOULLI], ids=names)
def test_divergence_keeps_its_gradient_whatever_the_temperature(distribution: Distribution) -> None:
    sizes = []
    for temperature in (1.0, 8.0):
        student = torch.zeros_like(P).requires_grad_()
        distribution.divergence(1e-2 * P, student, temperature).mean().backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.parametrize("distribution", EVERY, ids=names)
def test_what_is_drawn_and_the_axes_have_one_fisher_information(distribution: Distribution) -> None:
    values = P[:1].float()
    expected = torch.zeros(3, 3)
    for axis in distribution.fisher_factor(values):
        expected += axis.T @ axis
    many = values.repeat(40_000, 1).requires_grad_()
    drawn = distribution.draw(many, torch.Generator().manual_seed(0))
    (g,) = torch.autograd.grad(distribution.loss(many, drawn).sum(), many)
    torch.testing.assert_close(g.T @ g / len(g), expected, atol=0.02, rtol=0)
    p = values.sigmoid()[0]
    by_hand = {BERNOULLI: (p * (1 - p)).diag(), GAUSSIAN: torch.eye(3)}
    if distribution in by_hand:
        torch.testing.assert_close(expected, by_hand[distribution])


def test_what_counts_as_the_same() -> None:
    one, other = torch.tensor([[0.5, -2.0], [0.5, -2.0]]), torch.tensor([[3.0, -0.1], [3.0, 0.1]])
    assert CATEGORICAL.same_decision(one, other).tolist() == [True, True]
    # Of the second row the second label has crossed one half.
    assert BERNOULLI.same_decision(one, other).tolist() == [True, False]
    assert GAUSSIAN.same_decision(torch.tensor([[0.61, 0.0]]), torch.tensor([[0.69, 0.05]])).tolist() == [True]
    assert GAUSSIAN.same_decision(torch.tensor([[0.61, 0.0]]), torch.tensor([[0.69, 0.15]])).tolist() == [False]


@pytest.mark.parametrize("distribution", [BERNOULLI, GAUSSIAN], ids=names)
def test_labels_of_one_output_may_be_a_column_or_a_row(distribution: Distribution) -> None:
    values, labels = torch.tensor([[0.3], [2.0]]), torch.tensor([1.0, 0.0])
    assert torch.equal(distribution.loss(values, labels), distribution.loss(values, labels[:, None]))
    assert distribution.loss(values, labels).shape == (2,)
