"""The predicted losses of a method's results, and the candidates that they make.

An allocator chooses among the candidates of many matrices (`laconic.allocate`), so their losses have one unit: nats per
prediction, ½ tr(F E C E^T) for an error E, with the second moments C of the inputs and F of the output gradients.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.formats import Format, Sparse
from laconic.methods.base import Candidate, Candidates, Method, Products, digest
from laconic.numerics.moments import quadratic_loss


def dense_candidate(
    weight: Float[Tensor, "out in"], support: Bool[Tensor, "out in"] | None, products: Products
) -> Candidate:
    """The candidate of the unchanged matrix: dense, or sparse if an earlier step pruned it.

    Args:
        weight: the matrix.
        support: True where an earlier step kept a weight; None if it was not pruned.
        products: shapes (out, in) of the dense matrices that a row of input is multiplied by.

    Example:
        >>> dense_candidate(torch.ones(2, 3), support=None, products=((2, 3),)).nbytes
        24
    """
    if support is None:
        nbytes, kept = weight.numel() * weight.element_size(), weight.numel()
    else:
        sparse = Sparse.from_dense(weight, support)
        nbytes, kept = sparse.nbytes(), sparse.kept
    return Candidate(method=None, nbytes=nbytes, parameters=kept, products=products, loss=0.0)


def predicted_losses(
    weight: Float[Tensor, "out in"], stats: LayerStats, results: Iterable[Format]
) -> Float[Tensor, " k"]:
    """½ tr(F E C E^T) of each result, E its error, in nats per prediction."""
    F, C = stats[GradCovariance].matrix, stats[InputCovariance].matrix
    losses = [quadratic_loss(weight.double() - result.dense().double(), F, C) for result in results]
    return torch.tensor(losses, dtype=torch.float64)


def predict_candidates(
    weight: Float[Tensor, "out in"],
    stats: LayerStats,
    methods: Sequence[Method],
    compress: Callable[[], Sequence[Format]],
) -> Candidates:
    """The candidates of methods whose results are multiplied as one matrix; results that are no smaller are left out.

    Args:
        weight: the matrix.
        stats: the statistics that `compress` reads, and LOSS_STATISTICS. The losses are cached in it.
        methods: the methods with their sizes, smallest result first.
        compress: returns the result of each of the methods.
    """

    def predict() -> tuple[Tensor, Tensor, Tensor]:
        results = compress()
        sizes = torch.tensor([[result.nbytes(), result.count] for result in results]).long().reshape(-1, 2)
        lookup = torch.tensor(stats[InputCovariance].matrix.ndim == 1)
        return predicted_losses(weight, stats, results), sizes, lookup

    losses, sizes, lookup = stats.get_or_compute(f"losses and sizes of {methods} of {digest(weight)}", predict)
    products = () if lookup else ((weight.shape[0], weight.shape[1]),)
    dense = dense_candidate(weight, stats.support, products)
    smaller = [
        Candidate(method=method, nbytes=nbytes, parameters=count, products=products, loss=loss)
        for method, (nbytes, count), loss in zip(methods, sizes.tolist(), losses.tolist(), strict=True)
        if nbytes < dense.nbytes
    ]
    return Candidates((*smaller, dense))
