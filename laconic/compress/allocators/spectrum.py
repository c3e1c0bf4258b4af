"""Allocation by predicted losses: the budget is spent where it lowers them most per unit of cost.

The losses of a budget in bytes are corrected by measured ones (`laconic.compress.allocators.corrected`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from laconic.allocate import Plan
from laconic.calibrate import Problem
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator, uniform_plan
from laconic.compress.allocators.corrected import Factors, allocate_corrected, compress_copy, rows_to_measure
from laconic.compress.allocators.experts import add_candidates, check_currency
from laconic.compress.allocators.several_methods import plan_of_several
from laconic.compress.allocators.smallest_sizes import check_smallest_sizes
from laconic.compress.allocators.streamed_copies import compress_first_copy, compress_second_copy
from laconic.compress.checks import SizeSpec, check_size, check_workload
from laconic.compress.fitted import layer_candidates
from laconic.compress.pricing import CandidatesByGroup, CountedPricing, LatencyPricing, Pricing, loss_within
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import SolveGroup, all_groups, part_of
from laconic.errors import UserError, must_be
from laconic.methods import AnyOf, Candidate, Candidates, Method


class Spectrum(Allocator):
    """Spends the budget where it lowers the predicted loss most per unit of cost."""

    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.error is not None:
            raise must_be("error", "left out unless allocate is threshold", size_spec.error)
        if size_spec.currency == "latency":
            if isinstance(size_spec.keep, Mapping):
                requirement = "one number where currency is latency, which is that of the whole model"
                raise must_be("keep", requirement, dict(size_spec.keep))
        else:
            check_workload(size_spec)
        check_size(size_spec)
        if isinstance(size_spec.method, AnyOf) and size_spec.currency != "bytes":
            raise must_be("currency", f"bytes where the method is {size_spec.method.name}", size_spec.currency)
        if size_spec.keep is None:
            raise UserError(
                f"allocate: spectrum divides keep among the matrices, but '{size_spec.method.name}' has a size of its "
                "own; give keep in place of that size, or leave allocate out."
            )

    def supports(self, method: Method) -> bool:
        return not method.has_size

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        return True

    def plan_from_shapes(self, request: AllocationRequest) -> Plan:
        """As the base class.

        Raises:
            UserError: the smallest candidates of all layers cost more than `keep`, or the currency counts work and
                experts are targeted.
        """
        check_currency(request.size_spec.currency, request.layer_sets)
        check_smallest_sizes(request)
        return super().plan_from_shapes(request)

    def plan(self, request: AllocationRequest) -> AllocationResult:
        # In other currencies the uniform plan has another cost, so the two plans cannot be compared.
        rows = rows_to_measure(request) if request.size_spec.currency == "bytes" else None
        method = request.size_spec.method
        if isinstance(method, AnyOf) and rows is None:
            raise UserError(
                f"The method '{method.name}' compares methods by measured losses: give at least four calibration rows, "
                "and put it before steps that prune."
            )
        if rows is not None and request.needs is not None:
            uniform, candidates = compress_first_copy(request, uniform_plan(request), find_candidates, loss_within)
            compress = partial(compress_second_copy, request)
        else:
            candidates = dict[str, Candidates]()
            for group, problems in request.each_group("Decomposing the layers"):
                candidates |= find_candidates(request, group, problems)
                del problems  # Their memory is needed to measure the next layers.
            if rows is None:
                return _spend_budget(request, candidates, {})
            if isinstance(method, AnyOf):
                return plan_of_several(request, candidates, rows, partial(_choose, request), method.methods)
            compress = partial(compress_copy, request, loss=partial(loss_within, candidates))
            uniform = compress(uniform_plan(request))
        return allocate_corrected(
            request, "spectrum", rows, uniform, partial(_spend_budget, request, candidates), compress
        )


def find_candidates(
    request: AllocationRequest, group: SolveGroup, problems: Mapping[str, Problem]
) -> dict[str, Candidates]:
    """Return the candidates of a group by its name, and those of each of its matrices by theirs.

    Args:
        request: the method.
        group: the group.
        problems: the problem of each matrix, by name.
    """
    own: dict[str, Candidates] = {}
    for matrix in group.matrices:
        problem = problems[matrix.name]
        # A streamed model is on loan in float32, and sizes are those of the dtype that it is stored in.
        weight = problem.weight.to(request.lm.dtype)
        own[matrix.name] = layer_candidates(group, request.size_spec.method, weight, problem.stats)
        del problem
    return {**own, group.name: add_candidates(list(own.values()))}


def _spend_budget(request: AllocationRequest, candidates: CandidatesByGroup, factors: Factors) -> AllocationResult:
    """The plan with the least predicted loss within each budget; losses are multiplied by the factor of their block."""
    factor_of = {group.name: factors.get(part_of(group), 1.0) for group in all_groups(request.layer_sets)}
    corrected = {
        name: Candidates(tuple(replace(option, loss=option.loss * factor) for option in candidates[name].all))
        for name, factor in factor_of.items()
    }
    chosen = _choose(request, corrected)
    predicted = sum(candidate.loss / factor_of[name] for name, candidate in chosen.items())
    return AllocationResult({name: candidate.method for name, candidate in chosen.items()}, predicted)


def _choose(request: AllocationRequest, candidates: CandidatesByGroup) -> dict[str, Candidate]:
    """The candidates of least predicted loss within each budget, by the name of their group."""
    size_spec = request.size_spec
    assert size_spec.keep is not None, "a size of the method's own was refused"
    pricing: Pricing = CountedPricing(size_spec.currency)
    if size_spec.currency == "latency":
        pricing = LatencyPricing(request.lm, size_spec.workload, request.problems, request.track)
    chosen: dict[str, Candidate] = {}
    for budget in split_budget(size_spec.keep, request.layer_sets):
        with budget.in_errors():
            chosen |= pricing.spend(budget.layer_sets, candidates, budget.keep)
    return chosen
