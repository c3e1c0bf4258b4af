"""The budget goes where the predicted loss falls most (`laconic.allocate.spectrum`), or to the slowest matrices.

Of a budget in bytes the predictions are corrected first, where there are calibration rows, by what each block costs
when it is measured, and the plan gives way to the same fraction for every matrix where that diverges less
(`laconic.compress.allocators.corrected`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from laconic.compress.allocators.allocator import Allocator, Job, Planned
from laconic.compress.allocators.corrected import Factors, block_of, corrected
from laconic.compress.pricing import Counted, Ladders, Timed
from laconic.compress.size_spec import SizeSpec, check_size, check_workload
from laconic.compress.solve_groups import SolveGroup, every_unit, split_by_group
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.methods import Candidate, Candidates


class Spectrum(Allocator):
    def check(self, asked: SizeSpec) -> None:
        if asked.error is not None:
            raise must_be("error", "left out unless allocate is threshold", asked.error)
        if asked.currency == "latency":
            if isinstance(asked.keep, Mapping):
                requirement = "one number where currency is latency, which is that of the whole model"
                raise must_be("keep", requirement, dict(asked.keep))
        else:
            check_workload(asked)
        check_size(asked)
        if asked.keep is None:
            raise UserError(
                f"allocate: spectrum shares out keep among the matrices, and '{asked.method.name}' says its own size; "
                "give keep in place of that size, or leave allocate out."
            )

    def predicts(self, asked: SizeSpec) -> bool:
        return True

    def plan(self, job: Job) -> Planned:
        offered = {
            unit.name: job.asked.method.candidates(job.problems[unit.name].weight, job.problems[unit.name].known)
            for unit in job.track(every_unit(job.families), "Decomposing the layers")
        }
        if job.asked.currency != "bytes":
            # The same fraction of the bytes of every matrix is no plan of the same cost.
            return _spent(job, offered, {})
        return corrected(job, "spectrum", partial(_spent, job, offered), partial(_loss, offered))


def _spent(job: Job, offered: Ladders, factors: Factors) -> Planned:
    """The plan of least predicted loss, times the factor of its block, within each budget."""
    asked = job.asked
    assert asked.keep is not None, "a size of the method's own was refused"
    in_time = asked.currency == "latency"
    pricing = Timed(job.lm, asked.workload, job.track) if in_time else Counted(asked.currency)
    by_unit = {unit.name: factors.get(block_of(unit), 1.0) for unit in every_unit(job.families)}
    weighed = {name: _times(ladder, by_unit[name]) for name, ladder in offered.items()}
    chosen: dict[str, Candidate] = {}
    for keep, group in split_by_group(asked.keep, job.families):
        chosen |= pricing.spend(group, weighed, job.problems, keep)
    predicted = sum(candidate.loss / by_unit[name] for name, candidate in chosen.items())
    return Planned({name: candidate.method for name, candidate in chosen.items()}, predicted)


def _times(ladder: Candidates, factor: float) -> Candidates:
    return Candidates(tuple(replace(candidate, loss=candidate.loss * factor) for candidate in ladder.all))


def _loss(offered: Ladders, unit: SolveGroup, whole: Format) -> float:
    """The predicted loss of the largest candidate size that takes no more bytes than `whole`, else of the smallest."""
    candidates = offered[unit.name].all
    within = [candidate for candidate in candidates if candidate.nbytes <= whole.nbytes()]
    return (
        min(candidate.loss for candidate in within)
        if within
        else min(candidates, key=lambda candidate: candidate.nbytes).loss
    )
