"""Predicted losses of many sizes of one matrix, from some of its rows.

A solver that rounds rows independently of each other takes as long as the number of rows. To choose among the types of
llama.cpp's blocks, some rows are solved for every type, and the matrix as a whole only for the type that is chosen.
Row i counts by F_ii, the second moment of the gradients at its output. Rows are therefore taken at equal steps of the
running sum of diag F: often where F_ii is large, and never where it is zero. With e_i the error of such a row, the loss
of the matrix is estimated as

    ½ tr F · mean_i e_i C e_i^T,

which leaves out products of errors in different rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.methods.base import Candidate, Candidates
from laconic.methods.prediction import dense_candidate
from laconic.methods.quantize.base import QuantizationMethod
from laconic.numerics.moments import quadratic_loss

ROWS = 128
"""The most rows that are solved for a prediction."""


def sampled_candidates(
    weight: Float[Tensor, "out in"], stats: LayerStats, methods: Sequence[QuantizationMethod]
) -> Candidates:
    """The candidates of methods with a size, with losses predicted from at most ROWS rows.

    Args:
        weight: the matrix.
        stats: the statistics that the methods read, and LOSS_STATISTICS.
        methods: the methods, smallest result first; a result that is no smaller than the matrix is left out.

    Example:
        >>> from laconic.methods import Rtn
        >>> F = GradCovariance.from_total(torch.ones(2), count=1)
        >>> stats = LayerStats([InputCovariance.from_moment(torch.eye(32), count=1), F])
        >>> offered = sampled_candidates(torch.eye(32)[:2], stats, [Rtn(grid="q4_0"), Rtn(grid="q8_0")])
        >>> [candidate.nbytes for candidate in offered.all]
        [36, 68, 256]
    """
    shape = (weight.shape[0], weight.shape[1])
    F = stats[GradCovariance]
    C = _for_methods(stats[InputCovariance], len(methods))
    diagonal = (F.total if F.total.ndim == 1 else F.total.diagonal()).double()
    rows = rows_by_weight(diagonal, min(shape[0], ROWS))
    own = GradCovariance.from_total(F.total[rows] if F.total.ndim == 1 else F.total[rows][:, rows], F.count)
    some = LayerStats([C, own], None if stats.support is None else stats.support[rows])
    dense = dense_candidate(weight, stats.support, () if C.total.ndim == 1 else (shape,))
    mean = diagonal.sum() / (F.count or 1) / len(rows)
    moment, offered = C.matrix, list[Candidate]()
    for method in methods:
        if (nbytes := method.nbytes_for(shape, weight.dtype)) >= dense.nbytes:
            continue
        E = weight[rows].double() - method.compress(weight[rows], some).dense().double()
        loss = quadratic_loss(E, mean.expand(len(rows)), moment)
        offered.append(
            Candidate(method=method, nbytes=nbytes, parameters=weight.numel(), products=dense.products, loss=loss)
        )
    return Candidates((*offered, dense))


def _for_methods(C: InputCovariance, methods: int) -> InputCovariance:
    """The same moment, which keeps a factor for every method and for every matrix with these inputs.

    The factor of a wide matrix takes longer than to round some of its rows.
    """

    def copy() -> InputCovariance:
        own = InputCovariance.from_total(C.total, C.count)
        own.readers = C.readers * methods
        return own

    return C.share(f"moment for {methods} methods", copy)


def rows_by_weight(weights: Float[Tensor, " rows"], count: int) -> Int[Tensor, " count"]:
    """Rows at equal steps of the running sum of their weights; a row with a large weight comes several times.

    Args:
        weights: the weight of each row; if all are zero, every row has the same.
        count: the number of rows.

    Example:
        >>> rows_by_weight(torch.tensor([1.0, 0.0, 3.0]), count=4).tolist()
        [0, 2, 2, 2]
    """
    if not weights.sum() > 0:
        weights = torch.ones_like(weights)
    ends = weights.double().cumsum(0)
    middles = (torch.arange(count, device=weights.device) + 0.5) * (ends[-1] / count)
    return torch.searchsorted(ends, middles).clamp_(max=len(weights) - 1)
