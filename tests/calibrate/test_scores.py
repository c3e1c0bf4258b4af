"""The Fisher information from labels enumerated, sampled and given."""

import pytest
import torch

from laconic.calibrate.losses import fisher_losses
from laconic.errors import UserError
from laconic.model import Predictions
from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN


def moment_of_gradients(values: torch.Tensor, mode: str, distribution=CATEGORICAL, labels=None) -> torch.Tensor:
    """Σ over the scores of g g^T for one prediction, g the gradient at its values."""
    generator = torch.Generator().manual_seed(0)
    leaf = values.clone().requires_grad_()
    predictions = Predictions(leaf, torch.zeros(1, dtype=torch.long), labels, distribution)
    total = torch.zeros(values.shape[1], values.shape[1])
    for score in fisher_losses(predictions, mode, generator):
        (g,) = torch.autograd.grad(score, leaf, retain_graph=True)
        total += g.T @ g
    return total


def test_enumerating_classes_gives_the_exact_fisher_of_a_softmax():
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    p = logits.softmax(-1)[0]
    assert torch.allclose(moment_of_gradients(logits, "enumerated"), torch.diag(p) - torch.outer(p, p), atol=1e-6)


def test_sampling_agrees_with_enumerating_on_average():
    logits = torch.tensor([[0.3, -1.0, 2.0]]).repeat(20_000, 1).requires_grad_()
    predictions = Predictions(logits, torch.arange(len(logits)), None, CATEGORICAL)
    drawn = list(fisher_losses(predictions, "sampled", torch.Generator().manual_seed(0)))
    assert len(drawn) == 4
    g = torch.cat([torch.autograd.grad(score, logits, retain_graph=True)[0] for score in drawn])
    p = logits[0].softmax(-1)
    assert torch.allclose(g.T @ g / len(logits), torch.diag(p) - torch.outer(p, p), atol=0.01)


def test_a_gaussian_has_unit_fisher():
    values = torch.tensor([[0.4, -0.2]])
    assert torch.allclose(moment_of_gradients(values, "auto", distribution=GAUSSIAN), torch.eye(2))


def test_a_wide_gaussian_is_sampled():
    values = torch.zeros(5_000, 6, requires_grad=True)
    predictions = Predictions(values, torch.arange(5_000), None, GAUSSIAN)
    drawn = list(fisher_losses(predictions, "auto", torch.Generator().manual_seed(0)))
    g = torch.cat([torch.autograd.grad(score, values, retain_graph=True)[0] for score in drawn])
    assert torch.allclose(g.T @ g / len(values), torch.eye(6), atol=0.1)


def test_a_text_of_many_predictions_is_drawn_once():
    values = torch.zeros(6, 9, requires_grad=True)
    predictions = Predictions(values, torch.tensor([0, 0, 0, 1, 1, 1]), None, CATEGORICAL)
    assert len(list(fisher_losses(predictions, "sampled", torch.Generator().manual_seed(0)))) == 1


def test_the_datas_labels_give_the_empirical_fisher():
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    g = logits.softmax(-1) - torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.allclose(moment_of_gradients(logits, "data", labels=torch.tensor([1])), g.T @ g, atol=1e-6)


def test_the_fisher_of_independent_labels_is_p_less_y_of_each():
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    p, y = logits.sigmoid()[0], torch.tensor([1.0, 0.0, 1.0])
    exact = moment_of_gradients(logits, "enumerated", BERNOULLI)
    assert torch.allclose(exact, torch.diag(p * (1 - p)), atol=1e-6)
    empirical = moment_of_gradients(logits, "data", BERNOULLI, labels=y[None])
    assert torch.allclose(empirical, torch.outer(p - y, p - y), atol=1e-6)


def test_several_scores_have_each_their_error():
    values, truth = torch.tensor([[0.4, -0.2]]), torch.tensor([[1.0, 0.5]])
    g = values - truth
    assert torch.allclose(moment_of_gradients(values, "data", GAUSSIAN, labels=truth), g.T @ g)


def test_enumerating_is_refused_where_it_would_not_be_exact():
    predictions = Predictions(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), None, CATEGORICAL)
    with pytest.raises(UserError, match="labels must be 'sampled' or 'data'"):
        list(fisher_losses(predictions, "enumerated", torch.Generator()))


def test_missing_labels_are_one_sentence():
    with pytest.raises(UserError, match="no labels; got 'data'"):
        moment_of_gradients(torch.zeros(1, 3), "data")
