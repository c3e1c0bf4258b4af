"""Every matrix as small as an error of the whole model allows (`laconic.compress.allocators.threshold`).

Sizes found by running the model: every module as small as an error of the whole model allows.

Paper: P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, rank selection: the
error allowed is divided among the modules in proportion to their measured time, so that slow ones may shrink most;
in forward order each takes the smallest size of a grid with which the whole model, all before it replaced, stays
within the parts allotted so far. A module with no such size stays dense, and those after it may use its part.

The paper raises the rank step by step. Here the grid is bisected, which runs the model four times for 15 sizes: a size
is only taken once it was itself measured to be within the error, so where the error does not fall from size to size a
module may end larger than it had to be, and never over the error. The error is the KL divergence from the original on
the calibration rows, of which the paper's increase of the loss is an estimate with labels.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf

import torch
from torch import nn

from laconic.allocate import Plan
from laconic.calibrate import Calibration, Problem
from laconic.calibrate.passes import Profile, evaluating, profile
from laconic.compress.allocators.allocator import Allocated, Allocator, Job
from laconic.compress.kl_metric import KLMetric
from laconic.compress.size_spec import SizeSpec
from laconic.compress.solve_groups import SolveGroup
from laconic.compress.solving import finite_weight, replace_layers
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model import Batch, LanguageModel
from laconic.processes import on_rank_zero


class Threshold(Allocator):
    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.error is None:
            raise UserError("allocate: threshold needs error in a recipe's step: the nats that it allows, like 0.01.")
        if not 0 < size_spec.error < inf:
            raise must_be("error", "in (0, ∞)", size_spec.error)
        if size_spec.keep is not None:
            raise must_be("keep", "left out where allocate is threshold, which takes error", size_spec.keep)
        if size_spec.method.has_size:
            raise UserError(
                f"allocate: threshold finds the sizes, so '{size_spec.method.name}' must be given without one."
            )
        if size_spec.sequential:
            raise UserError(
                "sequential and anchored must be left out where allocate is threshold, which measures what it puts in "
                "place; the plan that it finds can be used with them."
            )
        if size_spec.currency != "bytes":
            raise must_be("currency", "left out unless allocate is spectrum", size_spec.currency)

    def needs_data(self, size_spec: SizeSpec) -> bool:
        return True

    def plan(self, job: Job) -> Allocated:
        if job.data is None:
            raise UserError("allocate: threshold needs calibration data, on which the error is measured.")
        assert job.size_spec.error is not None
        sites = [site for unit in job.units for site in unit.sites]
        times = on_rank_zero(profile)(job.lm, sites, job.size_spec.workload, job.track)
        parts = allot_error(job.size_spec.error, job.units, times)
        return Allocated(search_sizes(job.lm, job.size_spec.method, job.units, job.problems, parts, job.data))


GRID = tuple(part / 16 for part in range(1, 16))
"""The fractions of its bytes that a unit is tried at."""


def allot_error(error: float, units: Sequence[SolveGroup], profile: Profile) -> dict[str, float]:
    """The part of `error` that each unit may cause, by its name: in proportion to its time."""
    times = {unit.name: sum(profile.uses[site.name].share for site in unit.sites) for unit in units}
    whole = sum(times.values())
    return {name: error * time / whole if whole else error / len(units) for name, time in times.items()}


def search_sizes(
    lm: LanguageModel,
    method: Method,
    units: Sequence[SolveGroup],
    problems: Mapping[str, Problem],
    parts: Mapping[str, float],
    data: Calibration,
) -> Plan:
    """The smallest size on the grid for each of `units`, in order, within the sum of their `parts` up to it."""
    plan: Plan = {}
    allowed = 0.0
    with evaluating(lm):
        trial = _Trial(lm, data.batches)
        for unit in data.track(units, "Searching the sizes"):
            allowed += parts[unit.name]
            plan[unit.name] = trial.shrink(unit, _sizes(method, unit.shape, lm.dtype), problems[unit.name], allowed)
    return plan


def _sizes(method: Method, shape: tuple[int, int], dtype: torch.dtype) -> list[Method]:
    """What `method` offers on the grid, smallest first, each once."""
    return list(dict.fromkeys(method.with_keep(keep, shape, dtype) for keep in GRID))


class _Trial:
    """A copy of a model in which layers are replaced, and its error against the original."""

    def __init__(self, lm: LanguageModel, batches: Sequence[Batch]) -> None:
        self._trial = replace(lm, model=deepcopy(lm.model))
        self._metric = KLMetric(lm, batches)

    def shrink(self, unit: SolveGroup, sizes: Sequence[Method], problem: Problem, allowed: float) -> Method | None:
        """Leave `unit` at the smallest of `sizes` with which the error is at most `allowed`; None where it is dense."""
        chosen, layers = None, self._layers(unit)
        low, high, weight = 0, len(sizes), finite_weight(self._trial, unit, problem)
        while low < high:
            middle = (low + high) // 2
            whole = sizes[middle].compress(weight, problem.stats)
            smaller = replace_layers(self._trial, unit, whole, problem) is not None
            if smaller and self._metric(self._trial) <= allowed:
                chosen, layers, high = sizes[middle], self._layers(unit), middle
            else:
                low = middle + 1
        for name, layer in layers.items():
            self._trial.model.set_submodule(name, layer)
        return chosen

    def _layers(self, unit: SolveGroup) -> dict[str, nn.Module]:
        return {name: self._trial.model.get_submodule(name) for site in unit.sites for name in site.names}
