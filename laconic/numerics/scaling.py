"""Scales of the inputs of a layer before its weights are rounded: W x = (W diag s)(diag s)^{-1} x.

Rounding errs by as much in every column of a group, so a column that is made larger before, and whose inputs are made
smaller, errs less. J. Lin et al., "AWQ", MLSys 2024, arXiv 2306.00978, equations (4) and (5): s_j = (mean |x_j|)^a, the
one number a found by trying 20 of them in [0, 1).

Notation: E_a the error of rounding W diag s, times (diag s)^{-1}; several matrices may read the same input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from laconic.numerics.grid import Grid, Spacing, codes_of, fit_grid, values_of
from laconic.numerics.loss import quadratic_loss
from laconic.numerics.psd import InputMoment, OutputMoment

POWERS = tuple(i / 20 for i in range(20))
FLOOR = 1e-4
"""Of the mean activity: below it an input counts as this active."""


class Scaled(NamedTuple):
    """A matrix whose columns are to be scaled, and by what its error is judged.

    keep: False where a weight is zero by choice.
    """

    W: Float[Tensor, "out in"]
    F: OutputMoment
    C: InputMoment
    keep: Bool[Tensor, "out in"] | None = None


class Rounded(NamedTuple):
    """Codes, and the grids that they are of."""

    codes: Integer[Tensor, "out in"]
    grid: Grid


def best_scales(
    readers: Sequence[Scaled], activity: Float[Tensor, " in"], spacing: Spacing, weighted: bool
) -> Float[Tensor, " in"]:
    """The s, in fp32, for which Σ ½ tr(F E C E^T) over all readers of the input is least; 1 / s is a number of 16 bits.

    activity: mean |x_j|.
    weighted: ranges are searched for with each column counting as much as its inputs; otherwise all alike.
    """
    tried = [powers_of(activity, power) for power in POWERS]
    losses = [sum(_loss(reader, s, spacing, weighted) for reader in readers) for s in tried]
    return tried[losses.index(min(losses))]


def rounded(reader: Scaled, s: Float[Tensor, " in"], spacing: Spacing, weighted: bool) -> Rounded:
    """W diag s on grids whose ranges suit E C E^T of (diag s)^{-1} times the errors."""
    W = reader.W.float() * s
    C = reader.C if reader.C.ndim == 1 else reader.C.diagonal()
    grid = fit_grid(W, spacing, C / s.square() if weighted else None, reader.keep)
    return Rounded(codes_of(W, grid), grid)


def powers_of(activity: Float[Tensor, " in"], power: float) -> Float[Tensor, " in"]:
    """(mean |x_j|)^power, divided by √(max · min) of them."""
    level = activity.double().mean()
    if level <= 0:
        return torch.ones_like(activity, dtype=torch.float32)
    s = (activity.double() / level).clamp(min=FLOOR).pow(power)
    inverse = (s.max() * s.min()).sqrt() / s
    return 1 / inverse.half().float()


def _loss(reader: Scaled, s: Float[Tensor, " in"], spacing: Spacing, weighted: bool) -> float:
    E = reader.W.float() - values_of(*rounded(reader, s, spacing, weighted)) / s
    return quadratic_loss(E if reader.keep is None else E * reader.keep, reader.F, reader.C)
