"""The method that a matrix is given in the end, and the problem of a word embedding that is stored by tokens.

A plan says which method is asked for. Blocks of llama.cpp do not fit every width, and the method then offers another
type of blocks (`Method.for_shape`).

A word embedding is a matrix Wᵀ (width, vocabulary) with one-hot inputs. Where the result is decoded by rows, the method
solves for W (vocabulary, width) instead. The loss is the same, with F and C in each other's place:

    ½ tr(F E C Eᵀ) = ½ tr(C Eᵀ F E).
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.allocate import Plan
from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.compress.solve_groups import SolveGroup
from laconic.errors import Notice
from laconic.methods import Candidates, Method
from laconic.methods.quantize.blocks import BlockQuantization


def is_by_tokens(group: SolveGroup, method: Method) -> bool:
    """Whether the layer is a word embedding that the method stores by tokens."""
    return group.sites[0].is_lookup and method.stores_rows


def solved_shape(group: SolveGroup, method: Method) -> tuple[int, int]:
    """(out, in) of a matrix of a group as the method is given it."""
    rows, columns = group.shape
    return (columns, rows) if is_by_tokens(group, method) else (rows, columns)


def fit_method(group: SolveGroup, method: Method) -> Method:
    """The method with a size that fits the matrices of a group."""
    return method.for_shape(solved_shape(group, method))


def fit_plan(plan: Plan, groups: Iterable[SolveGroup]) -> Plan:
    """The plan with methods that fit.

    Args:
        plan: the method of each group, by its name.
        groups: the groups in the plan.
    """
    by_name = {group.name: group for group in groups}
    return {
        name: method if method is None or name not in by_name else fit_method(by_name[name], method)
        for name, method in plan.items()
    }


def warn_of_other_blocks(pairs: Sequence[tuple[SolveGroup, Method]]) -> None:
    """Say which types of blocks were replaced, and how many matrices of which width they were asked for.

    Args:
        pairs: the groups with the methods that were asked for.
    """
    counts = Counter[tuple[str, str, int]]()
    for group, method in pairs:
        fitted = fit_method(group, method)
        if isinstance(method, BlockQuantization) and isinstance(fitted, BlockQuantization) and method != fitted:
            counts[str(method.grid), str(fitted.grid), solved_shape(group, method)[1]] += group.count
    for (asked, given, width), count in counts.items():
        warnings.warn(
            f"{asked} needs rows of a multiple of 256 columns; matrices of {width} columns ({count}) are stored in "
            f"{given}, as llama.cpp's own quantizer does.",
            Notice,
            stacklevel=2,
        )


def as_solved(
    group: SolveGroup, method: Method, weight: Float[Tensor, "out in"], stats: LayerStats
) -> tuple[Float[Tensor, "rows columns"], LayerStats]:
    """The matrix and the statistics that the method is given for a group that is no stack.

    Args:
        group: the group.
        method: the method.
        weight: its matrix; (width, vocabulary) for a word embedding.
        stats: the statistics of the matrix.
    """
    if not is_by_tokens(group, method):
        return weight, stats
    return weight.T.contiguous(), transpose_stats(stats, weight.shape[0])


def layer_candidates(
    group: SolveGroup, method: Method, weight: Float[Tensor, "out in"], stats: LayerStats
) -> Candidates:
    """The candidates of a matrix of a group; arguments as of `as_solved`."""
    offered = method.candidates(*as_solved(group, method, weight, stats))
    if not is_by_tokens(group, method):
        return offered
    # The rows of a word embedding are looked up, not multiplied.
    return Candidates(tuple(replace(candidate, products=()) for candidate in offered.all))


def transpose_stats(stats: LayerStats, width: int) -> LayerStats:
    """The statistics of a word embedding by tokens.

    Args:
        stats: those of the matrix (width, vocabulary).
        width: the width of the model.

    Example:
        >>> C = InputCovariance.from_moment(torch.tensor([0.25, 0.75]), count=4)
        >>> F = GradCovariance.from_total(torch.eye(3), count=1)
        >>> transpose_stats(LayerStats([C, F]), 3)[InputCovariance].matrix.shape
        torch.Size([3, 3])
    """
    if InputCovariance not in stats:
        return LayerStats()
    inputs = stats[InputCovariance]
    if GradCovariance not in stats:
        # Without gradients every column counts alike.
        ones = torch.ones(width, dtype=inputs.total.dtype, device=inputs.total.device)
        return LayerStats([InputCovariance.from_moment(ones, inputs.count)])
    gradients = stats[GradCovariance]
    swapped = (
        InputCovariance.from_total(gradients.total, gradients.count),
        GradCovariance.from_total(inputs.total, inputs.count),
    )
    return LayerStats(swapped)
