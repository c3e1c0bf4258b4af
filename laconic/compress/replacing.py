"""Solve the matrices of a group of layers, and replace the layers by the solutions."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.allocate import Plan
from laconic.calibrate import Problem
from laconic.compress.fitted import as_solved, solved_shape
from laconic.compress.solve_groups import SolveGroup
from laconic.formats import Format, LowRank, split_rows
from laconic.formats.expert_stacks import empty_stack, stack_formats
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.numerics.moments import check_finite


@dataclass(frozen=True)
class GroupResult:
    """The result of one group of layers.

    Args:
        group: its name.
        sizes: the bytes of its layers afterwards; None if they stayed dense.
        tokens: the calibration tokens of each expert, by the name of the stack.
    """

    group: str
    sizes: Mapping[str, int] | None
    tokens: Mapping[str, list[int]]


def finite_weight(lm: LanguageModel, group: SolveGroup, problem: Problem) -> Float[Tensor, "out in"]:
    """Return the weight of a problem in the dtype that the model is stored in.

    Args:
        lm: the model.
        group: the layers, for their name in the error.
        problem: the problem of the group.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weight = problem.weight.to(lm.dtype)
    check_weight(group.name, weight)
    return weight


def check_weight(name: str, weight: Tensor) -> None:
    """Raise UserError if a weight of the layer or parameter `name` is NaN or infinite."""
    check_finite(weight, f"The weights of '{name}' are not finite; use a checkpoint without NaN and infinity.")


def solve_matrices(
    lm: LanguageModel, group: SolveGroup, method: Method, problems: Mapping[str, Problem], drop_solutions: bool = False
) -> Iterator[Format]:
    """Compress each matrix of a group, one after another.

    Args:
        lm: the model.
        group: the group.
        method: the method with its size.
        problems: the problem of each matrix, by name.
        drop_solutions: whether to forget what the method caches for other sizes of a matrix as soon as the matrix is
            solved, so that it is not in memory for all experts of a stack at once.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    for matrix in group.matrices:
        problem = problems[matrix.name]
        yield method.compress(*as_solved(matrix, method, finite_weight(lm, matrix, problem), problem.stats))
        if drop_solutions:
            problem.stats.clear_solutions()


def replace_group(
    lm: LanguageModel, group: SolveGroup, wholes: Iterable[Format], problems: Mapping[str, Problem]
) -> dict[str, int] | None:
    """Replace the layers of a group, or its stack of experts, by their compressed form.

    Args:
        lm: the model, changed in place.
        group: the layers to replace.
        wholes: the compressed matrices of the group, as `solve_matrices` yields them: one matrix (Σ out, in) of all
            layers, or the matrix of each expert. Each is copied before the next one is taken, so that they need not
            exist together.
        problems: the problems that were solved, by the name of the matrix. If they have means, the biases are adjusted
            to remove the mean error.

    Returns:
        The bytes of each layer, or of the stack, afterwards. None if nothing was replaced, because the result is
            neither smaller than the present one nor has more zeros.
    """
    if group.stack is not None:
        return _replace_stack(lm, group, wholes, problems)
    (whole,) = wholes
    return _replace_layers(lm, group, whole, problems[group.name])


def _replace_layers(lm: LanguageModel, group: SolveGroup, whole: Format, problem: Problem) -> dict[str, int] | None:
    """Replace layers by a compressed matrix of all of them, (Σ out, in)."""
    nonzero = _nonzero_in(whole, group)
    if whole.nbytes() >= _stored_nbytes(lm, group) and nonzero >= _nonzero_count(group):
        return None
    formats = _split_format(whole, group)
    bias = _unbiased(whole, problem)
    biases = [None] * len(group.sites) if bias is None else bias.split(group.rows)
    sizes = {site.name: format.nbytes() for site, format in zip(group.sites, formats, strict=True)}
    for site, format, site_bias in zip(group.sites, formats, biases, strict=True):
        lm.replace(site, format, site_bias)
    return sizes


def _replace_stack(
    lm: LanguageModel, group: SolveGroup, wholes: Iterable[Format], problems: Mapping[str, Problem]
) -> dict[str, int] | None:
    """Replace a stack of experts by the compressed matrix of each expert."""
    nonzero, biases = 0, list[Tensor]()

    def take() -> Iterator[Format]:
        nonlocal nonzero
        for matrix, whole in zip(group.matrices, wholes, strict=True):
            nonzero += _nonzero_in(whole, matrix)
            bias = _unbiased(whole, problems[matrix.name])
            if bias is not None:
                biases.append(bias)
            yield whole

    stack = stack_formats(take(), group.count)
    nbytes = stack.nbytes()
    if nbytes >= _stored_nbytes(lm, group) and nonzero >= _nonzero_count(group):
        return None
    lm.replace_stack(group.name, stack, torch.stack(biases) if biases else None)
    return {group.name: nbytes}


def _nonzero_in(whole: Format, group: SolveGroup) -> int:
    return group.numel if whole.support is None else int(whole.support.count_nonzero())


@torch.no_grad()
def _unbiased(whole: Format, problem: Problem) -> Float[Tensor, " out"] | None:
    """The bias that removes the mean error; None if the bias is not adjusted."""
    # The factors are stored rounded but multiplied in float32, so the bias is computed from the same product.
    bias = None if problem.means is None else problem.bias(deepcopy(whole).float().dense())
    return None if bias is None else bias.float()


def free_replaced(lm: LanguageModel) -> None:
    """Free the memory of layers of a streamed model that were replaced while they are on loan."""
    if lm.loans is not None:
        lm.loans.release_replaced(lm.model)


def count_expert_tokens(group: SolveGroup, problems: Mapping[str, Problem]) -> dict[str, list[int]]:
    """Return the number of calibration tokens of each expert of a group by its name; empty for other layers.

    Args:
        group: the group.
        problems: the problem of each matrix, by name; without statistics the tokens are not known.
    """
    counts = [problems[matrix.name].stats.token_count for matrix in group.matrices]
    known = [tokens for tokens in counts if tokens is not None]
    return {group.name: known} if known else {}


def put_empty_formats(lm: LanguageModel, plan: Plan, groups: Iterable[SolveGroup]) -> None:
    """Replace layers in a model without weights, under the same condition as `replace_group`.

    Args:
        lm: the model on the meta device, changed in place.
        plan: the method of each group by its name, with its size; None keeps the group dense.
        groups: the groups.
    """
    for group in groups:
        method = plan[group.name]
        if method is not None:
            _put_empty_format(lm, group, method)


def _put_empty_format(lm: LanguageModel, group: SolveGroup, method: Method) -> None:
    """Replace the layers of a group in a model without weights, under the same condition as `replace_group`.

    Args:
        lm: the model on the meta device, changed in place.
        group: the layers to replace.
        method: the method with its size.
    """
    rows, columns = group.shape
    # Without weights, each expert of a stack counts as many weights as the one with the most, for which there is room.
    nonzero = _nonzero_count(group) // group.count
    kept = nonzero if nonzero < rows * columns else None
    whole = method.meta_format(solved_shape(group, method), kept).to(lm.dtype)
    remaining = rows * columns if whole.support is None else whole.count
    if group.stack is not None:
        stack = empty_stack(whole, group.count)
        if stack.nbytes() < _stored_nbytes(lm, group) or remaining < nonzero:
            lm.replace_stack(group.name, stack)
        return
    if whole.nbytes() >= _stored_nbytes(lm, group) and remaining >= nonzero:
        return
    for site, format in zip(group.sites, _split_format(whole, group), strict=True):
        lm.replace(site, format)


def _stored_nbytes(lm: LanguageModel, group: SolveGroup) -> int:
    """Stored bytes of the group's present layers."""
    first = group.sites[0]
    if group.stack is not None and first.stack is not None:
        return first.stack.nbytes_in(lm.dtype)
    return sum(lm.site_nbytes(site) for site in group.sites)


def _nonzero_count(group: SolveGroup) -> int:
    """Number of weights that no earlier step has pruned."""
    first = group.sites[0]
    if group.stack is not None and first.stack is not None:
        return first.stack.count
    modules = [(site.module, site.shape) for site in group.sites]
    return sum(
        module.count if isinstance(module, Format) and module.support is not None else shape[0] * shape[1]
        for module, shape in modules
    )


def _split_format(whole: Format, group: SolveGroup) -> tuple[Format, ...]:
    if len(group.sites) == 1:
        return (whole,)
    assert isinstance(whole, LowRank), "only methods that make an input factor are given several matrices"
    return split_rows(whole, group.rows)
