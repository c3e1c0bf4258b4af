"""The check, from shapes alone, that the smallest candidates of all layers fit into the budget of `spectrum`.

Without it, a budget that is too small would be found only after calibration and the decomposition of every matrix.
"""

import torch

from laconic.compress.allocators.allocator import AllocationRequest
from laconic.compress.fitted import solved_shape
from laconic.compress.pricing import CountedPricing
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import SolveGroup, all_groups
from laconic.formats import Format, LowRank
from laconic.methods import Candidate, Candidates, Method
from laconic.methods.base import Products
from laconic.model.size import count_parameters


def check_smallest_sizes(request: AllocationRequest) -> None:
    """Check that a budget is not below the cost of the smallest candidates, or of the unchanged matrices.

    A budget in time is not checked, as it needs measurements. Pruned layers are not checked either, as the number of
    their zeros is not known before the weights are.

    Args:
        request: the budget, the model and its layers.

    Raises:
        UserError: the budget is too small.
    """
    size_spec = request.size_spec
    if size_spec.keep is None or size_spec.currency == "latency":
        return
    pricing = CountedPricing(size_spec.currency)
    for budget in split_budget(size_spec.keep, request.layer_sets):
        groups = all_groups(budget.layer_sets)
        if any(group.sites[0].support is not None for group in groups):
            continue
        offered: dict[tuple[object, ...], Candidates] = {}
        candidates: dict[str, Candidates] = {}
        for group in groups:
            key = (group.shape, group.count, group.sites[0].is_lookup)
            if key not in offered:
                offered[key] = _smallest_candidates(size_spec.method, group, request.lm.dtype)
            candidates[group.name] = offered[key]
        with budget.in_errors():
            pricing.spend(budget.layer_sets, candidates, budget.keep)


def _smallest_candidates(method: Method, group: SolveGroup, dtype: torch.dtype) -> Candidates:
    """The smallest candidate of a group, whose loss is unknown, and the unchanged matrices."""
    is_lookup = group.sites[0].is_lookup
    shape = solved_shape(group, method)
    smallest = method.smallest_size(shape, dtype)
    whole = smallest.meta_format(shape).to(dtype)
    return Candidates(
        (
            Candidate(
                method=smallest,
                nbytes=group.count * whole.nbytes(),
                parameters=group.count * count_parameters(whole),
                products=_products(whole, is_lookup=is_lookup),
                loss=1.0,
            ),
            Candidate(
                method=None,
                nbytes=group.numel * dtype.itemsize,
                parameters=group.numel,
                products=() if is_lookup else (group.shape,),
                loss=0.0,
            ),
        )
    )


def _products(whole: Format, *, is_lookup: bool) -> Products:
    """The matrices that a row of input is multiplied by; the rows of an embedding are looked up."""
    if not isinstance(whole, LowRank):
        return () if is_lookup else (whole.shape,)
    (m, n), rank = whole.shape, whole.rank
    return ((m, rank),) if is_lookup else ((rank, n), (m, rank))
