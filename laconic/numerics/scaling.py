"""Scales of a quantized matrix: those of its input columns, chosen before rounding, and those of its groups, refitted.

Columns: W x = (W diag s)(diag s)^{-1} x. Rounding makes equally large errors in all columns of a group. So
the error of a column is smaller if the column is scaled up before rounding and its input is scaled down. J. Lin et al.,
"AWQ", MLSys 2024, arXiv 2306.00978, equations 4 and 5: s_j = (mean |x_j|)^a, with a the best of 20 values in [0, 1).

Groups: a scale is shared by several weights, and so is an entry of a table. Each weight is one of the shared numbers p
times a factor, w_ij = f_ij p[k_ij], so the weights are linear in p, W = L p, and the least tr((W* − L p) H (W* − L
p)^T) solves L^T (L p H) = L^T (W* H). `refit_tied` finds it by conjugate gradients from the present p, preconditioned
by the diagonal of L^T (L · H); every step lowers the loss.

Notation: W (m, n) the matrix, W* (m, n) the target, C and H (n, n) moments of the inputs, F (m, m) of the output
gradients, E the error; k (m, n) indices into p, f (m, n) factors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from laconic.numerics.grid import GridSpec, QuantizedWeight, dequantize, fit_grid, quantize
from laconic.numerics.moments import InputMoment, OutputMoment, multiply
from laconic.numerics.refit import conjugate_gradients

POWERS = tuple(i / 20 for i in range(20))
FLOOR = 1e-4
"""The least activity of an input, as a fraction of the mean."""


class ScaledMatrix(NamedTuple):
    """A matrix whose columns are to be scaled, and the curvature that its error is measured by.

    Args:
        W: the matrix.
        F: moment of the output gradients.
        C: moment of the inputs.
        keep: False at pruned weights; None if nothing was pruned.
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
        weighted: search for ranges with the errors of column j weighted by C_jj / s_j²; otherwise all columns count the
            same.

    Returns:
        s in fp32; 1 / s can be stored in 16 bits.

    Example:
        >>> matrix = ScaledMatrix(torch.tensor([[1.0, 0.3]]), F=torch.ones(1), C=torch.tensor([1.0, 100.0]))
        >>> s = search_scales([matrix], torch.tensor([1.0, 10.0]), GridSpec(bits=2, group=2), weighted=True)
        >>> s.shape
        torch.Size([2])
    """
    candidates = [activation_powers(activity, power) for power in POWERS]
    measured = [_Loss.of(reader) for reader in readers]
    losses = [sum(loss.at(s, spec, weighted) for loss in measured) for s in candidates]
    return candidates[losses.index(min(losses))]


def quantize_scaled(reader: ScaledMatrix, s: Float[Tensor, " in"], spec: GridSpec, weighted: bool) -> QuantizedWeight:
    """Quantize W diag s.

    Args:
        reader: the matrix.
        s: the scale of each column.
        spec: bits, group and kind of the grids.
        weighted: search for ranges with the errors of column j weighted by C_jj / s_j², which is the loss after
            (diag s)^{-1}.

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
        activity: mean |x_j|; values below a ten-thousandth of the mean are raised to it.
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


class _Loss(NamedTuple):
    """½ tr(F E C E^T) of one matrix, in fp32: the losses of two scales differ by more than its rounding errors.

    Args:
        reader: the matrix.
        F: the moment of the output gradients over its mean diagonal.
        C: the same of the inputs.
        unit: product of the mean diagonals.
    """

    reader: ScaledMatrix
    F: OutputMoment
    C: InputMoment
    unit: float

    @classmethod
    def of(cls, reader: ScaledMatrix) -> "_Loss":
        means = [(S if S.ndim == 1 else S.diagonal()).double().mean().item() for S in (reader.F, reader.C)]
        F, C = (
            (S / mean).float() if mean > 0 else torch.zeros_like(S, dtype=torch.float32)
            for S, mean in zip((reader.F, reader.C), means, strict=True)
        )
        return cls(reader, F, C, means[0] * means[1])

    def at(self, s: Float[Tensor, " in"], spec: GridSpec, weighted: bool) -> float:
        """The loss with the scales s."""
        reader = self.reader
        rounded = quantize_scaled(reader, s, spec, weighted)
        E = reader.W.float() - dequantize(rounded.codes, rounded.grid) / s
        E = E if reader.keep is None else E * reader.keep
        return 0.5 * self.unit * (multiply(self.F, E) * multiply(self.C, E.T).T).sum(dtype=torch.float64).item()


TOLERANCE = 1e-3
"""The iteration ends once the residual, in the norm of the preconditioner, is below this fraction of the first one."""

STEPS = 30
"""At most this many; the remaining error is smaller than that of rounding p to 16 bits."""


class TiedWeights(NamedTuple):
    """Weights that are shared numbers times factors: w_ij = f_ij p[k_ij].

    Args:
        indices: the index of each weight's number.
        factors: the factor of each weight; 0 for a weight that is always zero.

    Example:
        >>> tied = TiedWeights(torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 1.0, 2.0]]))
        >>> tied.weights(torch.tensor([3.0, 5.0]))
        tensor([[3., 5., 6.]])
    """

    indices: Integer[Tensor, "out in"]
    factors: Float[Tensor, "out in"]

    def weights(self, p: Float[Tensor, " k"]) -> Float[Tensor, "out in"]:
        """L p: the weights for the numbers p."""
        return p[self.indices] * self.factors

    def sums(self, X: Float[Tensor, "out in"], count: int) -> Float[Tensor, " k"]:
        """L^T X, the transpose of `weights`; `count` is the length of p."""
        return X.new_zeros(count).index_add_(0, self.indices.view(-1), (X * self.factors).view(-1))


def refit_tied(
    W: Float[Tensor, "out in"], tied: TiedWeights, p: Float[Tensor, " k"], H: Float[Tensor, "in in"]
) -> Float[Tensor, " k"]:
    """The shared numbers whose weights come nearest to a matrix. In fp64.

    Args:
        W: the target.
        tied: which weights share which number.
        p: the present numbers; those that no weight uses do not change.
        H: moment of the inputs.

    Example:
        >>> tied = TiedWeights(torch.tensor([[0, 0]]), torch.ones(1, 2))
        >>> refit_tied(torch.tensor([[1.0, 3.0]]), tied, torch.zeros(1), torch.eye(2))
        tensor([2.], dtype=torch.float64)
    """
    H = H.double()
    p, tied = p.double(), tied._replace(factors=tied.factors.double())
    diagonal = tied.sums(tied.factors * H.diagonal(), len(p))
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=torch.finfo(H.dtype).tiny), 0)
    residual = tied.sums((W.double() - tied.weights(p)) @ H, len(p))[None]
    found = conjugate_gradients(
        lambda D: tied.sums(tied.weights(D[0]) @ H, len(p))[None],
        lambda R: R * inverse,
        (p[None], residual),
        torch.ones_like(residual, dtype=torch.bool),
        (TOLERANCE, STEPS),
    )
    return found[0]


def grid_indices(shape: tuple[int, int], group: int | None, device: torch.device) -> Integer[Tensor, "out in"]:
    """For each weight, the index of its group's scale in a row-major array of scales (out, groups).

    Args:
        shape: (out, in).
        group: columns of a row that share a scale; None if all weights share one.
        device: where to create the result.

    Example:
        >>> grid_indices((2, 4), 2, torch.device("cpu"))
        tensor([[0, 0, 1, 1],
                [2, 2, 3, 3]])
    """
    rows, columns = shape
    if group is None:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    groups = torch.arange(columns, device=device) // group
    return torch.arange(rows, device=device)[:, None] * -(-columns // group) + groups
