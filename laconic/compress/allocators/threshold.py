"""Make every matrix as small as a bound on the KL divergence of the whole model allows, by running the model.

Paper: P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, rank selection. The
allowed error is divided among the units in proportion to their measured time, so that slow units may shrink most. Units
are processed in forward order. Each takes the smallest size of a grid for which the error of the whole model, with all
earlier units compressed, is at most the sum of the shares so far. If there is no such size, the unit stays dense, and
later units may use its share.

The paper raises the rank step by step. Here the grid is bisected, which takes four runs of the model for 15 sizes. A
size is taken only if its own error was measured and is within the bound. If the error does not fall monotonically with
size, a unit may end up larger than necessary, but the bound always holds. The error is the KL divergence from the
original on the calibration rows; the paper uses the increase of the task loss instead.
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
    """Makes every matrix as small as a bound on the KL divergence of the model allows."""

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
"""The fractions of a unit's bytes that are tried."""


def allot_error(error: float, units: Sequence[SolveGroup], profile: Profile) -> dict[str, float]:
    """Divide the allowed error among units in proportion to their time.

    Args:
        error: allowed KL divergence of the whole model, in nats per prediction.
        units: the units.
        profile: time share of each layer; if no unit takes time, all get equal parts.

    Returns:
        The part of each unit, by name.
    """
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
    """Find the smallest size on the grid for each unit, in forward order.

    Args:
        lm: the original model, which is not changed.
        method: the method without a size.
        units: the units, in forward order.
        problems: the problem of each unit, by name.
        parts: the part of the allowed error of each unit, by name; unused parts pass to later units.
        data: calibration data to measure the error on.

    Returns:
        A method with a size for each unit; None if the unit stays dense.
    """
    plan: Plan = {}
    allowed = 0.0
    with evaluating(lm):
        trial = _Trial(lm, data.batches)
        for unit in data.track(units, "Searching the sizes"):
            allowed += parts[unit.name]
            plan[unit.name] = trial.shrink(unit, _sizes(method, unit.shape, lm.dtype), problems[unit.name], allowed)
    return plan


def _sizes(method: Method, shape: tuple[int, int], dtype: torch.dtype) -> list[Method]:
    """The distinct sizes of `method` on the grid, smallest first."""
    return list(dict.fromkeys(method.with_keep(keep, shape, dtype) for keep in GRID))


class _Trial:
    """A copy of a model whose layers are replaced one after another, and its KL divergence from the original."""

    def __init__(self, lm: LanguageModel, batches: Sequence[Batch]) -> None:
        self._trial = replace(lm, model=deepcopy(lm.model))
        self._metric = KLMetric(lm, batches)

    def shrink(self, unit: SolveGroup, sizes: Sequence[Method], problem: Problem, allowed: float) -> Method | None:
        """Replace `unit` by the smallest of `sizes` with an error of at most `allowed`; None if it stays dense."""
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
