"""The budget goes where the predicted loss falls most (`laconic.allocate.spectrum`), or to the slowest matrices."""

from collections.abc import Mapping, Sequence

from laconic.allocate import Plan
from laconic.compress.asked import Asked, check_size, check_workload
from laconic.compress.latency import Timed
from laconic.compress.planning import split_by_group
from laconic.compress.pricing import Counted, Pricing, every_unit
from laconic.compress.units import Family
from laconic.compress.ways.way import Job, Planned, Way
from laconic.errors import UserError, must_be


class Spectrum(Way):
    def check(self, asked: Asked) -> None:
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

    def predicts(self, asked: Asked) -> bool:
        return True

    def plan(self, job: Job) -> Planned:
        asked = job.asked
        assert asked.keep is not None, "a size of the method's own was refused"
        in_time = asked.currency == "latency"
        pricing = Timed(job.lm, asked.workload, job.track) if in_time else Counted(asked.currency)
        poured = [_poured(job, group, keep, pricing) for keep, group in split_by_group(asked.keep, job.families)]
        plan = {name: method for part, _ in poured for name, method in part.items()}
        return Planned(plan, sum(loss for _, loss in poured))


def _poured(job: Job, families: Sequence[Family], keep: float, pricing: Pricing) -> tuple[Plan, float]:
    """The plan of least predicted loss within one budget over `families`, and that loss."""
    offered = {
        unit.name: job.asked.method.ladder(job.problems[unit.name].weight, job.problems[unit.name].known)
        for unit in job.track(every_unit(families), "Decomposing the layers")
    }
    chosen = pricing.spend(families, offered, job.problems, keep)
    return {name: rung.method for name, rung in chosen.items()}, sum(rung.loss for rung in chosen.values())
