"""The best values of numbers that several weights share: scales of groups, entries of tables.

Each weight is one of the numbers p times a factor of its own, w_ij = f_ij p[k_ij], so that the weights are linear in p,
W = L p, and the least tr((W* − L p) H (W* − L p)^T) solves L^T (L p H) = L^T (W* H). It is found by conjugate
gradients from the present p, with the diagonal of L^T (L · H) as their preconditioner: every step lowers the loss.

Notation: W* (m, n) what is to be come near, H (n, n) positive definite, k (m, n) places in p, f (m, n) factors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

TOLERANCE = 1e-3
"""Done once the residual, in the norm of the preconditioner, is below this fraction of what it was at first."""

STEPS = 30
"""At most so many. What is left is less than rounding p to 16 bits costs."""


class Sharing(NamedTuple):
    """Which of the numbers each weight has, and what it is multiplied by; the factor 0 makes a weight that stays 0."""

    places: Integer[Tensor, "out in"]
    factors: Float[Tensor, "out in"]

    def weights(self, p: Float[Tensor, " k"]) -> Float[Tensor, "out in"]:
        """L p."""
        return p[self.places] * self.factors

    def sums(self, X: Float[Tensor, "out in"], count: int) -> Float[Tensor, " k"]:
        """L^T X."""
        return X.new_zeros(count).index_add_(0, self.places.view(-1), (X * self.factors).view(-1))


def refit_tied(
    W: Float[Tensor, "out in"], sharing: Sharing, p: Float[Tensor, " k"], H: Float[Tensor, "in in"]
) -> Float[Tensor, " k"]:
    """The numbers whose weights come nearest to W, from p on; those that no weight has, or only by 0, stay."""
    H = H.double()
    p, places, factors = p.double(), sharing.places, sharing.factors.double()
    sharing = Sharing(places, factors)
    diagonal = sharing.sums(factors * H.diagonal(), len(p))
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=torch.finfo(H.dtype).tiny), 0)
    R = sharing.sums((W.double() - sharing.weights(p)) @ H, len(p))
    D = R * inverse
    energy = R @ D
    goal = TOLERANCE**2 * energy
    for _ in range(STEPS):
        if energy <= goal:
            break
        LDH = sharing.sums(sharing.weights(D) @ H, len(p))
        step = energy / (D @ LDH)
        p = p + step * D
        R = R - step * LDH
        before, energy = energy, R @ (R * inverse)
        D = R * inverse + energy / before * D
    return p


def grid_places(shape: tuple[int, int], group: int | None, device: torch.device) -> Integer[Tensor, "out in"]:
    """Of scales (out, groups), row by row, each for `group` columns of a row; one for all weights where it is None."""
    rows, columns = shape
    if group is None:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    groups = torch.arange(columns, device=device) // group
    return torch.arange(rows, device=device)[:, None] * -(-columns // group) + groups
