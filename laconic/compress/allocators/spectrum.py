"""Spend the budget where it lowers the predicted loss most per unit of cost (`laconic.allocate.spectrum`).

For a budget in bytes and with calibration rows, the predictions are corrected by the measured loss of each block, and
the uniform plan is used if it is clearly better (`laconic.compress.allocators.corrected`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from laconic.compress.allocators.allocator import Allocated, Allocator, Job
from laconic.compress.allocators.corrected import Factors, allocate_corrected, block_name
from laconic.compress.pricing import CandidatesByUnit, CountedPricing, LatencyPricing
from laconic.compress.size_spec import SizeSpec, check_size, check_workload
from laconic.compress.solve_groups import SolveGroup, all_units, split_by_group
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.methods import Candidate, Candidates, Method


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
        if size_spec.keep is None:
            raise UserError(
                f"allocate: spectrum shares out keep among the matrices, and '{size_spec.method.name}' says its own "
                "size; give keep in place of that size, or leave allocate out."
            )

    def serves(self, method: Method) -> bool:
        return not method.has_size

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        return True

    def plan(self, job: Job) -> Allocated:
        candidates = {
            unit.name: job.size_spec.method.candidates(job.problems[unit.name].weight, job.problems[unit.name].stats)
            for unit in job.track(all_units(job.groups), "Decomposing the layers")
        }
        if job.size_spec.currency != "bytes":
            # In other currencies the uniform plan has another cost, so the two plans cannot be compared.
            return _spend_budget(job, candidates, {})
        return allocate_corrected(job, "spectrum", partial(_spend_budget, job, candidates), partial(_loss, candidates))


def _spend_budget(job: Job, candidates: CandidatesByUnit, factors: Factors) -> Allocated:
    """The plan with the least predicted loss within each budget; losses are multiplied by the factor of their block."""
    size_spec = job.size_spec
    assert size_spec.keep is not None, "a size of the method's own was refused"
    in_time = size_spec.currency == "latency"
    pricing = LatencyPricing(job.lm, size_spec.workload, job.track) if in_time else CountedPricing(size_spec.currency)
    by_unit = {unit.name: factors.get(block_name(unit), 1.0) for unit in all_units(job.groups)}
    weighed = {name: _scale_losses(options, by_unit[name]) for name, options in candidates.items()}
    chosen: dict[str, Candidate] = {}
    for keep, group in split_by_group(size_spec.keep, job.groups):
        chosen |= pricing.spend(group, weighed, job.problems, keep)
    predicted = sum(candidate.loss / by_unit[name] for name, candidate in chosen.items())
    return Allocated({name: candidate.method for name, candidate in chosen.items()}, predicted)


def _scale_losses(options: Candidates, factor: float) -> Candidates:
    return Candidates(tuple(replace(candidate, loss=candidate.loss * factor) for candidate in options.all))


def _loss(candidates: CandidatesByUnit, unit: SolveGroup, whole: Format) -> float:
    """The least predicted loss among candidates with at most the bytes of `whole`, or that of the smallest one."""
    all = candidates[unit.name].all
    within = [candidate for candidate in all if candidate.nbytes <= whole.nbytes()]
    return (
        min(candidate.loss for candidate in within) if within else min(all, key=lambda candidate: candidate.nbytes).loss
    )
