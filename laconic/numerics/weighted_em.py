"""Weighted low rank by expectation-maximization: conditioning of the weights, the EM iteration, and its acceleration.

N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003: X⁺ = SVD_r(G), G = w∘A + (1 − w)∘X, never raises
Σ_ij w_ij (A − X)_ij² for 0 ≤ w ≤ 1. D. Tuzhilina, T. Hastie, "Weighted Low Rank Matrix Approximation and Acceleration",
arXiv 2109.11057: truncate an extrapolation of the last G instead, by Nesterov's momentum or Anderson's mixing. Rank-r
matrices are not a convex set, so an extrapolation may raise the error; it is then rejected, its history is cleared, and
the plain step is taken.

EM moves an entry by the fraction w_ij, so the nearer the weights are to 1 the fewer iterations it takes. With row and
column scales p and q, the error Σ_ij Φ_ij (W − Ŵ)_ij² is Σ_ij w_ij (A − X)_ij² for A = p W q, X = p Ŵ q and
w_ij = Φ_ij / (p_i q_j)².

Notation: Φ (m, n) non-negative weights, W (m, n) the matrix.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.lowrank import Components
from laconic.numerics.moments import eigh

# A row or column without weight gets this fraction of the mean, so that it is fitted too.
LEAST_WEIGHT = 1e-6


class Scales(NamedTuple):
    """Positive scales p of the rows and q of the columns."""

    p: Float[Tensor, " out"]
    q: Float[Tensor, " in"]


class WeightedProblem(NamedTuple):
    """min Σ_ij w_ij (A − X)_ij² over X of some rank.

    Args:
        A: the matrix.
        w: weights in [0, 1].

    Example:
        >>> problem = WeightedProblem(torch.tensor([[2.0]]), torch.tensor([[0.5]]))
        >>> problem.evaluate(torch.zeros(1, 1))
        State(error=2.0, completed=tensor([[1.]]))
    """

    A: Float[Tensor, "out in"]
    w: Float[Tensor, "out in"]

    def evaluate(self, X: Float[Tensor, "out in"]) -> "State":
        """The error of X, and the matrix that the next EM step truncates."""
        E = self.A - X
        weighted = self.w * E
        return State(torch.dot(weighted.flatten(), E.flatten()).item(), X + weighted)


class State(NamedTuple):
    """The error Σ_ij w_ij (A − X)_ij² at one X, and the completed matrix w∘A + (1 − w)∘X."""

    error: float
    completed: Float[Tensor, "out in"]


def raise_floor(Phi: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Raise the weights so that every row and every column weighs at least a millionth of the mean. In fp64.

    Args:
        Phi: weights; unchanged where all rows and columns weigh that much, all ones if they are all zero.

    Example:
        >>> raise_floor(torch.tensor([[1.0, 1.0], [1.0, 1.0]])).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    Phi = Phi.double()
    if not Phi.any():
        return torch.ones_like(Phi)
    a, b = Phi.sum(1), Phi.sum(0)
    raised_a, raised_b = (sums.clamp(min=LEAST_WEIGHT * sums.mean()) for sums in (a, b))
    return Phi + (torch.outer(raised_a, raised_b) - torch.outer(a, b)) / Phi.sum()


def rank_one_fit(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≈ (p_i q_j)² from the sums of rows and columns; exact if Φ has rank one.

    Example:
        >>> p, q = rank_one_fit(torch.tensor([[1.0, 4.0]]))
        >>> torch.outer(p, q).square()
        tensor([[1.0000, 4.0000]])
    """
    return Scales(Phi.sum(1).sqrt(), (Phi.sum(0) / Phi.sum()).sqrt())


def rank_one_bound(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≤ (p_i q_j)², near the rank-one fit, with equality in every row and every column.

    Example:
        >>> p, q = rank_one_bound(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        >>> bool((torch.outer(p, q).square() >= torch.tensor([[1.0, 2.0], [2.0, 1.0]]) - 1e-6).all())
        True
    """
    fit = rank_one_fit(Phi)
    ratio = Phi / torch.outer(fit.p, fit.q).square()
    rows = ratio.amax(1)
    columns = (ratio / rows[:, None]).amax(0)
    return Scales(fit.p * rows.sqrt(), fit.q * columns.sqrt())


def uniform_bound(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≤ (p_i q_j)², equal for all rows and columns: the largest weight.

    Example:
        >>> uniform_bound(torch.tensor([[1.0, 4.0]])).p
        tensor([2.])
    """
    return Scales(Phi.max().sqrt().expand(Phi.shape[0]), Phi.new_ones(Phi.shape[1]))


def scale_problem(W: Float[Tensor, "out in"], Phi: Float[Tensor, "out in"], bound: Scales) -> WeightedProblem:
    """The problem with weights divided by `bound`. In fp64."""
    scale = torch.outer(bound.p, bound.q)
    # Rounding may leave the largest weight just above 1, where the iterations may no longer descend.
    return WeightedProblem(W.double() * scale, (Phi / scale.square()).clamp(max=1))


def rank_one_weighted(W: Float[Tensor, "out in"], scales: Scales, rank: int) -> Components:
    """The best `rank` under Σ_ij (p_i q_j)² (W − Ŵ)_ij²: p^{-1} SVD_r(p W q) q^{-1}; needs m ≤ n. In fp64.

    Example:
        >>> A, B = rank_one_weighted(torch.eye(2), Scales(torch.ones(2), torch.tensor([1.0, 3.0])), rank=1)
        >>> (A @ B).diagonal().round(decimals=4)
        tensor([0., 1.], dtype=torch.float64)
    """
    A, B = truncate(W.double() * torch.outer(scales.p, scales.q), rank)
    return Components(A / scales.p[:, None], B / scales.q)


def truncate(Y: Float[Tensor, "out in"], rank: int) -> Components:
    """SVD_r(Y) = U_r (U_r^T Y) for m ≤ n, from the eigenvectors of the m × m matrix Y Y^T.

    Squaring loses half the digits of the small singular values, but only the subspace of the large ones is used.

    Example:
        >>> U, B = truncate(torch.diag(torch.tensor([1.0, 3.0])), rank=1)
        >>> (U @ B).round(decimals=4)
        tensor([[0., 0.],
                [0., 3.]])
    """
    _, U = eigh(Y @ Y.T)
    U = U[:, :rank]
    return Components(U, U.T @ Y)


# Iterations end when the last few together lowered the error by no more than this fraction; a single one may be an
# extrapolation that just missed.
CONVERGED = 1e-6
PATIENCE = 3

# Pairs that Anderson's mixing looks back on, and its ridge relative to the trace of their Gram matrix: residuals of
# a slow iteration are nearly collinear, and their Gram matrix is singular without it.
MEMORY = 5
MIXING_RIDGE = 1e-8


class Descent(NamedTuple):
    """The result of an iteration.

    Args:
        factors: the factors reached.
        errors: the error before the first and after every iteration, strictly falling.
    """

    factors: Components
    errors: list[float]


class Extrapolation(ABC):
    """Chooses the matrix to truncate next from the completed matrices so far."""

    @abstractmethod
    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The next matrix to truncate; G is the completed matrix at the present X."""

    @abstractmethod
    def reject(self, G: Float[Tensor, "out in"]) -> None:
        """Called when the proposal raised the error and G itself is truncated instead."""


class ExpectationMaximization(Extrapolation):
    """No extrapolation: the EM step itself."""

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return G

    def reject(self, G: Float[Tensor, "out in"]) -> None:
        pass


class Nesterov(Extrapolation):
    """G_t + (t − 1)/(t + 2) (G_t − G_{t−1}). Completing is affine, so this is the completion of the extrapolated X."""

    def __init__(self) -> None:
        self.t = 1
        self.previous: Tensor | None = None

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        extrapolated = G if self.previous is None else G + (self.t - 1) / (self.t + 2) * (G - self.previous)
        self.previous = G
        self.t += 1
        return extrapolated

    def reject(self, G: Float[Tensor, "out in"]) -> None:
        # The plain step that is taken instead is step 1 of a new sequence.
        self.t = 2


class Anderson(Extrapolation):
    """Σ_k α_k G_k with α = argmin ‖Σ_k α_k R_k‖², Σ α_k = 1, over the last residuals R_k = G_k − Y_k.

    Y_k is the matrix whose truncation gave the X_k that G_k completes.

    Args:
        Y: the first of them.
    """

    def __init__(self, Y: Float[Tensor, "out in"]) -> None:
        self.Y = Y
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        self.pairs.append((G, G - self.Y))
        residuals = [residual.flatten() for _, residual in self.pairs]
        K = torch.stack([torch.stack([first.dot(second) for second in residuals]) for first in residuals])
        K.diagonal().add_(MIXING_RIDGE * K.trace() + torch.finfo(K.dtype).tiny)
        alpha = torch.linalg.solve(K / K.trace(), K.new_ones(len(K)))
        alpha /= alpha.sum()
        self.Y = torch.zeros_like(G)
        for weight, (past, _) in zip(alpha.tolist(), self.pairs, strict=True):
            self.Y.add_(past, alpha=weight)
        return self.Y

    def reject(self, G: Float[Tensor, "out in"]) -> None:
        self.pairs.clear()
        self.Y = G


def descend(problem: WeightedProblem, start: Components, extrapolation: Extrapolation, iterations: int) -> Descent:
    """Iterate from a start.

    Args:
        problem: the matrix and its weights.
        start: the first factors.
        extrapolation: which matrix to truncate.
        iterations: at most this many; fewer at convergence.

    Example:
        >>> problem = WeightedProblem(torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 2))
        >>> descend(problem, Components(torch.ones(2, 1), torch.ones(1, 2)), Nesterov(), iterations=5).errors[-1]
        1.0
    """
    factors, state = start, problem.evaluate(start.A @ start.B)
    errors = [state.error]
    for _ in range(iterations):
        factors_next, state = _step(problem, state, extrapolation, rank=factors.A.shape[1])
        if state.error >= errors[-1]:
            # What remains is rounding error.
            break
        factors = factors_next
        errors.append(state.error)
        if has_converged(errors):
            break
    return Descent(factors, errors)


def has_converged(errors: list[float]) -> bool:
    """Whether the last few iterations together lowered the error by at most the fraction CONVERGED.

    Example:
        >>> has_converged([4.0, 1.0, 1.0, 1.0, 1.0])
        True
    """
    return len(errors) > PATIENCE and errors[-1 - PATIENCE] - errors[-1] <= CONVERGED * errors[-1 - PATIENCE]


def _step(problem: WeightedProblem, state: State, extrapolation: Extrapolation, rank: int) -> tuple[Components, State]:
    """Truncate the proposal if that lowers the error, else the completed matrix."""
    G = state.completed
    proposal = extrapolation.propose(G)
    factors = truncate(proposal, rank)
    proposed = problem.evaluate(factors.A @ factors.B)
    if proposed.error < state.error or proposal is G:
        return factors, proposed
    extrapolation.reject(G)
    factors = truncate(G, rank)
    return factors, problem.evaluate(factors.A @ factors.B)
