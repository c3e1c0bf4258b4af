"""The best rank r under element-wise weights: min Σ_ij Φ_ij (W − Ŵ)_ij², which has no closed form.

The problem is scaled by a rank-one bound of the weights (`precondition`), begun at the closed form of the rank-one fit
of the weights, and solved by one of four iterations, none of which ever raises the error. Without `precondition` it is
scaled by the largest weight alone and begun at the truncated SVD, as in N. Srebro, T. Jaakkola, "Weighted Low-Rank
Approximations", ICML 2003; weights that spread over decades then leave most entries nearly unmoved.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.acceleration import Anderson, Descent, Nesterov, Plain, descend
from laconic.numerics.alternating import alternate
from laconic.numerics.lowrank import Components, balanced
from laconic.numerics.weights import (
    Problem,
    Scales,
    rank_one_bound,
    rank_one_fit,
    rank_one_weighted,
    scaled,
    topped_up,
    uniform_bound,
)

Solver = Literal["em", "nesterov", "anderson", "als"]


class Solution(NamedTuple):
    """Ŵ = A B, and Σ Φ (W − Ŵ)² at the start and after every iteration, never rising."""

    A: Float[Tensor, "out r"]
    B: Float[Tensor, "r in"]
    losses: Float[Tensor, " steps"]


def weighted_low_rank(
    W: Float[Tensor, "out in"],
    Phi: Float[Tensor, "out in"],
    rank: int,
    solver: Solver = "nesterov",
    iterations: int = 30,
    precondition: bool = True,
) -> Solution:
    """A local minimum, or what is reached of it in `iterations`, which stop early at convergence.

    Rows and columns of Φ without weight are topped up to a millionth of the mean, in the losses too; all zero means
    uniform weights.
    """
    if len(W) > W.shape[1]:
        A, B, losses = weighted_low_rank(W.T, Phi.T, rank, solver, iterations, precondition)
        return Solution(B.T, A.T, losses)
    Phi = topped_up(Phi)
    # The scale of Φ is free; at a mean of 1 no square of it can underflow.
    unit = Phi.mean()
    Phi = Phi / unit
    bound = rank_one_bound(Phi) if precondition else uniform_bound(Phi)
    fit = rank_one_fit(Phi) if precondition else bound
    p, q = bound
    A, B = rank_one_weighted(W, fit, rank)
    descent = _solve(scaled(W, Phi, bound), Components(p[:, None] * A, B * q), solver, iterations)
    return _solution(descent, bound, unit)


def _solve(problem: Problem, start: Components, solver: Solver, iterations: int) -> Descent:
    match solver:
        case "als":
            return alternate(problem, start, iterations)
        case "em":
            return descend(problem, start, Plain(), iterations)
        case "nesterov":
            return descend(problem, start, Nesterov(), iterations)
        case "anderson":
            return descend(problem, start, Anderson(start.A @ start.B), iterations)


def _solution(descent: Descent, bound: Scales, unit: Tensor) -> Solution:
    A, B = descent.factors
    factors = balanced(Components(A / bound.p[:, None], B / bound.q))
    return Solution(*factors, torch.tensor(descent.errors, dtype=unit.dtype, device=unit.device) * unit)
