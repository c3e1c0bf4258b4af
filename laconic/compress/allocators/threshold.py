"""Every matrix as small as an error of the whole model allows (`laconic.compress.search`)."""

from math import inf

from laconic.calibrate.profile import profile
from laconic.compress.allocators.allocator import Allocator, Job, Planned
from laconic.compress.search import allotted, searched
from laconic.compress.size_spec import SizeSpec
from laconic.errors import UserError, must_be
from laconic.processes import on_rank_zero


class Threshold(Allocator):
    def check(self, asked: SizeSpec) -> None:
        if asked.error is None:
            raise UserError("allocate: threshold needs error in a recipe's step: the nats that it allows, like 0.01.")
        if not 0 < asked.error < inf:
            raise must_be("error", "in (0, ∞)", asked.error)
        if asked.keep is not None:
            raise must_be("keep", "left out where allocate is threshold, which takes error", asked.keep)
        if asked.method.has_size:
            raise UserError(f"allocate: threshold finds the sizes, so '{asked.method.name}' must be given without one.")
        if asked.walks:
            raise UserError(
                "sequential and anchored must be left out where allocate is threshold, which measures what it puts in "
                "place; the plan that it finds can be used with them."
            )
        if asked.currency != "bytes":
            raise must_be("currency", "left out unless allocate is spectrum", asked.currency)

    def runs_the_model(self, asked: SizeSpec) -> bool:
        return True

    def plan(self, job: Job) -> Planned:
        if job.data is None:
            raise UserError("allocate: threshold needs calibration data, on which the error is measured.")
        assert job.asked.error is not None
        sites = [site for unit in job.units for site in unit.sites]
        times = on_rank_zero(profile)(job.lm, sites, job.asked.workload, job.track)
        parts = allotted(job.asked.error, job.units, times)
        return Planned(searched(job.lm, job.asked.method, job.units, job.problems, parts, job.data))
