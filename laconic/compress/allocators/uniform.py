"""Every matrix the same: the size that the method says, or the same fraction of its bytes."""

from laconic.allocate import Plan, uniform
from laconic.compress.allocators.allocator import Allocator, Job, Planned
from laconic.compress.planning import split_by_group
from laconic.compress.size_spec import SizeSpec, check_size, check_unused
from laconic.compress.tied import stored_parts
from laconic.errors import must_be


class Uniform(Allocator):
    def check(self, asked: SizeSpec) -> None:
        if asked.currency == "latency" and asked.keep is not None:
            raise must_be("allocate", "spectrum where currency is latency", "uniform")
        check_unused(asked)
        check_size(asked)

    def plan(self, job: Job) -> Planned:
        return Planned(same_everywhere(job))

    def foreseen(self, job: Job) -> Plan:
        return same_everywhere(job)


def same_everywhere(job: Job) -> Plan:
    """The method itself for every unit, or set to `keep` of the bytes of each."""
    method, keep = job.asked.method, job.asked.keep
    if keep is None:
        return {unit.name: method for unit in job.units}
    plan: Plan = {}
    for fraction, group in split_by_group(keep, job.families):
        units = [unit for family in group for unit in family[-1]]
        shapes = {unit.name: unit.shape for unit in units}
        plan |= uniform(method, shapes, fraction, job.lm.dtype, stored_parts(group))
    return plan
