"""Weighted low rank by majorise-minimise, and two ways to get there in fewer iterations.

Papers: N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003: X⁺ = SVD_r(G), G = w∘A + (1 − w)∘X,
never raises Σ_ij w_ij (A − X)_ij² when 0 ≤ w ≤ 1. D. Tuzhilina, T. Hastie, "Weighted Low Rank Matrix Approximation and
Acceleration", arXiv 2109.11057: truncate an extrapolation of the last G instead, by Nesterov's momentum or Anderson's
mixing. Rank-r matrices are no convex set, so an extrapolation may raise the error; it is then refused, the past is
forgotten, and the plain step taken.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.lowrank import Components
from laconic.numerics.weights import Problem, State, truncated

# Iterations end when the last few together lowered the error by no more than this fraction; a single one may be an
# extrapolation that just missed.
CONVERGED = 1e-6
PATIENCE = 3

# Pairs that Anderson's mixing looks back on, and its ridge relative to the trace of their Gram matrix: residuals of
# a slow iteration are nearly collinear, and their Gram matrix is singular without it.
MEMORY = 5
RIDGE = 1e-8


class Descent(NamedTuple):
    """The factors reached, and the error before the first and after every iteration, strictly falling."""

    factors: Components
    errors: list[float]


class Extrapolation(ABC):
    """From the completed matrices so far, the one to truncate next."""

    @abstractmethod
    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The next matrix to truncate; G is the completed matrix at the present X."""

    @abstractmethod
    def refused(self, G: Float[Tensor, "out in"]) -> None:
        """The proposal raised the error, and G itself is truncated instead."""


class Plain(Extrapolation):
    """The EM step itself."""

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return G

    def refused(self, G: Float[Tensor, "out in"]) -> None:
        pass


class Nesterov(Extrapolation):
    """G_t + (t − 1)/(t + 2) (G_t − G_{t−1}): completing is affine, so this is completing the extrapolated X."""

    def __init__(self) -> None:
        self.t = 1
        self.previous: Tensor | None = None

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        extrapolated = G if self.previous is None else G + (self.t - 1) / (self.t + 2) * (G - self.previous)
        self.previous = G
        self.t += 1
        return extrapolated

    def refused(self, G: Float[Tensor, "out in"]) -> None:
        # The plain step that is taken instead is step 1 of a new sequence.
        self.t = 2


class Anderson(Extrapolation):
    """Σ_k α_k G_k with α = argmin ‖Σ_k α_k R_k‖², Σ α_k = 1, over the last residuals R_k = G_k − Y_k.

    Y_k is the matrix whose truncation gave the X_k that G_k completes.
    """

    def __init__(self, Y: Float[Tensor, "out in"]) -> None:
        self.Y = Y
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)

    def propose(self, G: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        self.pairs.append((G, G - self.Y))
        residuals = [residual.flatten() for _, residual in self.pairs]
        K = torch.stack([torch.stack([first.dot(second) for second in residuals]) for first in residuals])
        K.diagonal().add_(RIDGE * K.trace() + torch.finfo(K.dtype).tiny)
        alpha = torch.linalg.solve(K / K.trace(), K.new_ones(len(K)))
        alpha /= alpha.sum()
        self.Y = torch.zeros_like(G)
        for weight, (past, _) in zip(alpha.tolist(), self.pairs, strict=True):
            self.Y.add_(past, alpha=weight)
        return self.Y

    def refused(self, G: Float[Tensor, "out in"]) -> None:
        self.pairs.clear()
        self.Y = G


def descend(problem: Problem, start: Components, extrapolation: Extrapolation, iterations: int) -> Descent:
    """At most `iterations` steps from `start`; fewer when they no longer change anything."""
    factors, state = start, problem.at(start.A @ start.B)
    errors = [state.error]
    for _ in range(iterations):
        factors_next, state = _step(problem, state, extrapolation, rank=factors.A.shape[1])
        if state.error >= errors[-1]:
            # No smaller error is left but rounding.
            break
        factors = factors_next
        errors.append(state.error)
        if has_converged(errors):
            break
    return Descent(factors, errors)


def has_converged(errors: list[float]) -> bool:
    """Whether the last few iterations together lowered the error by no more than the fraction CONVERGED."""
    return len(errors) > PATIENCE and errors[-1 - PATIENCE] - errors[-1] <= CONVERGED * errors[-1 - PATIENCE]


def _step(problem: Problem, state: State, extrapolation: Extrapolation, rank: int) -> tuple[Components, State]:
    """The truncation of the proposal if that lowers the error, else of the completed matrix."""
    G = state.completed
    proposal = extrapolation.propose(G)
    factors = truncated(proposal, rank)
    proposed = problem.at(factors.A @ factors.B)
    if proposed.error < state.error or proposal is G:
        return factors, proposed
    extrapolation.refused(G)
    factors = truncated(G, rank)
    return factors, problem.at(factors.A @ factors.B)
