"""Scales for the input columns of a matrix before it is rounded: W x = (W diag s)(diag s)^{-1} x.

Rounding errs by as much in every column of a group, so a column that is scaled up before, and whose input is scaled
down, errs less. J. Lin et al., "AWQ", MLSys 2024, arXiv 2306.00978, equations 4 and 5: s_j = (mean |x_j|)^a, with a the
best of 20 values in [0, 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.grid import GridSpec, QuantizedWeight, dequantize, fit_grid, quantize
from laconic.numerics.moments import InputMoment, OutputMoment, quadratic_loss

POWERS = tuple(i / 20 for i in range(20))
FLOOR = 1e-4
"""The least activity of an input, as a fraction of the mean."""


class ScaledMatrix(NamedTuple):
    """A matrix whose columns are to be scaled, and the curvature that its error is measured by.

    Args:
        W: the matrix.
        F: moment of the output gradients.
        C: moment of the inputs.
        keep: False where a weight is zero by choice; None where all are kept.
    """

    W: Float[Tensor, "out in"]
    F: OutputMoment
    C: InputMoment
    keep: Bool[Tensor, "out in"] | None = None


def search_scales(
    readers: Sequence[ScaledMatrix], activity: Float[Tensor, " in"], spec: GridSpec, weighted: bool
) -> Float[Tensor, " in"]:
    """The scales s with the least loss Σ ½ tr(F E C E^T), summed over the matrices that read one input.

    Args:
        readers: the matrices.
        activity: mean |x_j|.
        spec: bits, group and kind of the grids.
        weighted: search for ranges with each column counting C_jj / s_j²; otherwise all columns count the same.

    Returns:
        s in fp32; 1 / s can be stored in 16 bits.

    Example:
        >>> matrix = ScaledMatrix(torch.tensor([[1.0, 0.3]]), F=torch.ones(1), C=torch.tensor([1.0, 100.0]))
        >>> s = search_scales([matrix], torch.tensor([1.0, 10.0]), GridSpec(bits=2, group=2), weighted=True)
        >>> s.shape
        torch.Size([2])
    """
    tried = [activation_powers(activity, power) for power in POWERS]
    losses = [sum(_loss(reader, s, spec, weighted) for reader in readers) for s in tried]
    return tried[losses.index(min(losses))]


def quantize_scaled(reader: ScaledMatrix, s: Float[Tensor, " in"], spec: GridSpec, weighted: bool) -> QuantizedWeight:
    """Quantize W diag s.

    Args:
        reader: the matrix.
        s: the scale of each column.
        spec: bits, group and kind of the grids.
        weighted: search for ranges with column j counting C_jj / s_j², for the error after (diag s)^{-1}.

    Example:
        >>> matrix = ScaledMatrix(torch.tensor([[0.0, 1.0, 2.0, 1.5]]), F=torch.ones(1), C=torch.ones(4))
        >>> s = torch.tensor([1.0, 1.0, 1.0, 2.0])
        >>> quantize_scaled(matrix, s, GridSpec(bits=2, group=4, clip=False), weighted=False).codes.tolist()
        [[0, 1, 2, 3]]
    """
    W = reader.W.float() * s
    C = reader.C if reader.C.ndim == 1 else reader.C.diagonal()
    grid = fit_grid(W, spec, C / s.square() if weighted else None, reader.keep)
    return QuantizedWeight(quantize(W, grid), grid)


def activation_powers(activity: Float[Tensor, " in"], power: float) -> Float[Tensor, " in"]:
    """(mean |x_j|)^power, divided by √(max · min) over j. In fp32.

    Args:
        activity: mean |x_j|; a ten-thousandth of its mean is the least that counts.
        power: a.

    Example:
        >>> activation_powers(torch.tensor([1.0, 4.0]), power=0.5).round(decimals=2)
        tensor([0.7100, 1.4100])
    """
    level = activity.double().mean()
    if level <= 0:
        return torch.ones_like(activity, dtype=torch.float32)
    s = (activity.double() / level).clamp(min=FLOOR).pow(power)
    inverse = (s.max() * s.min()).sqrt() / s
    return 1 / inverse.half().float()


def _loss(reader: ScaledMatrix, s: Float[Tensor, " in"], spec: GridSpec, weighted: bool) -> float:
    E = reader.W.float() - dequantize(*quantize_scaled(reader, s, spec, weighted)) / s
    return quadratic_loss(E if reader.keep is None else E * reader.keep, reader.F, reader.C)
