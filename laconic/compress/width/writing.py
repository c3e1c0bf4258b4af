"""The output projection of an attention or a feed-forward that has lost parts: its columns, refitted, and its bias."""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Gram, Known, Mean, Means, Problem
from laconic.model.inner import Inner
from laconic.numerics.structured import columns_of, damped, refitted


def problem_of(inner: Inner, known: Known, moves: bool) -> Problem:
    """What stays of the output projection is to come near the whole of it, on what is `known` of its inputs.

    Where its bias `moves`, the moment is taken around the mean, and the mean output is to be reached.
    """
    site = inner.writer
    weight, bias = site.weight(), site.bias()
    if not moves or Gram not in known:
        return Problem(weight=weight, known=known)
    gram, mean = known[Gram], known[Mean].vector
    means = Means(mean, weight.double() @ mean + (0 if bias is None else bias.detach().double()))
    centred = Gram.of(gram.matrix - torch.outer(mean, mean), gram.count)
    return Problem(weight=weight, known=known | Known([centred]), means=means)


def columns(problem: Problem, inner: Inner, parts: list[int]) -> Float[Tensor, "out kept"]:
    """The columns of `parts` as they are."""
    return problem.weight[:, columns_of(parts, inner.size).to(problem.weight.device)]


def refit_columns(problem: Problem, inner: Inner, parts: list[int]) -> Float[Tensor, "out kept"]:
    """The columns of `parts` that make up best for those that go."""
    kept = columns_of(parts, inner.size).to(problem.weight.device)
    return refitted(problem.weight, damped(problem.known[Gram].matrix), kept)


def centring_bias(
    problem: Problem, inner: Inner, parts: list[int], weight: Float[Tensor, "out kept"]
) -> Float[Tensor, " out"] | None:
    """The bias that leaves no mean error with these columns; None where it does not move."""
    if problem.means is None:
        return None
    kept = columns_of(parts, inner.size).to(weight.device)
    return problem.means.y - weight.double() @ problem.means.x[kept]
