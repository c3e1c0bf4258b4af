"""Make every matrix as small as a bound on the KL divergence of the whole model allows, by running the model.

Paper: P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, rank selection. The
allowed error is divided among the groups in proportion to their measured time, so that slow groups may shrink most.
Groups are processed in forward order. Each takes the smallest size of a grid for which the error of the whole model,
with all earlier groups compressed, is at most the sum of the shares so far. If there is no such size, the group stays
dense, and later groups may use its share.

The paper raises the rank step by step. Here the grid is bisected, which takes four runs of the model for 15 sizes. A
size is taken only if its own error was measured and is within the bound. If the error does not fall monotonically with
size, a group may end up larger than necessary, but the bound always holds. The error is the KL divergence from the
original on the calibration rows; the paper uses the increase of the task loss instead.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf

from torch import nn

from laconic.allocate import Plan
from laconic.calibrate import Calibration, Problem
from laconic.calibrate.passes import Profile, evaluating, profile
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator, check_one_method
from laconic.compress.checks import SizeSpec
from laconic.compress.kl_metric import KLMetric
from laconic.compress.replacing import replace_group, solve_matrices
from laconic.compress.solve_groups import SolveGroup
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model import Batch, LanguageModel
from laconic.processes import on_rank_zero


class Threshold(Allocator):
    """Makes every matrix as small as a bound on the KL divergence of the model allows."""

    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.error is None:
            raise UserError(
                "allocate: threshold needs error, the KL divergence that it allows in nats per prediction, like 0.01."
            )
        if not 0 < size_spec.error < inf:
            raise must_be("error", "in (0, ∞)", size_spec.error)
        if size_spec.keep is not None:
            raise must_be("keep", "left out if allocate is threshold, which needs error instead", size_spec.keep)
        check_one_method(size_spec, "threshold")
        if size_spec.method.has_size:
            raise UserError(
                f"allocate: threshold chooses the sizes, so '{size_spec.method.name}' must be given without one."
            )
        if size_spec.is_sequential:
            raise UserError(
                "sequential and anchored must be left out if allocate is threshold, which solves in its own order; run "
                "again with the plan that it finds to use them."
            )
        if size_spec.currency != "bytes":
            raise must_be("currency", "left out unless allocate is spectrum", size_spec.currency)

    def needs_data(self, size_spec: SizeSpec) -> bool:
        return True

    def plan(self, request: AllocationRequest) -> AllocationResult:
        if request.data is None:
            raise UserError("allocate: threshold measures the error on calibration data; name a source of it.")
        assert request.size_spec.error is not None
        sites = [site for group in request.groups for site in group.sites]
        times = on_rank_zero(profile)(request.lm, sites, request.size_spec.workload, request.track)
        parts = allot_error(request.size_spec.error, request.groups, times)
        method, problems = request.size_spec.method, request.problems
        return AllocationResult(search_sizes(request.lm, method, request.groups, problems, parts, request.data))


GRID = tuple(part / 16 for part in range(1, 16))
"""The fractions of a group's bytes that are tried."""


def allot_error(error: float, groups: Sequence[SolveGroup], profile: Profile) -> dict[str, float]:
    """Divide the allowed error among groups in proportion to their time.

    Args:
        error: allowed KL divergence of the whole model, in nats per prediction.
        groups: the groups.
        profile: time share of each layer; if no group takes time, all get equal parts.

    Returns:
        The part of each group, by name.
    """
    times = {
        group.name: sum(profile.layers[name].share for name in dict.fromkeys(site.unit for site in group.sites))
        for group in groups
    }
    whole = sum(times.values())
    return {name: error * time / whole if whole else error / len(groups) for name, time in times.items()}


def search_sizes(
    lm: LanguageModel,
    method: Method,
    groups: Sequence[SolveGroup],
    problems: Mapping[str, Problem],
    parts: Mapping[str, float],
    data: Calibration,
) -> Plan:
    """Find the smallest size on the grid for each group, in forward order.

    Args:
        lm: the original model, which is not changed.
        method: the method without a size.
        groups: the groups, in forward order.
        problems: the problem of each group, by name.
        parts: the part of the allowed error of each group, by name; unused parts pass to later groups.
        data: calibration data to measure the error on.

    Returns:
        A method with a size for each group; None if the group stays dense.
    """
    plan: Plan = {}
    allowed = 0.0
    with evaluating(lm):
        trial = _Trial(lm, data.batches)
        for group in data.track(groups, "Searching the sizes"):
            allowed += parts[group.name]
            # The distinct sizes on the grid, smallest first.
            sizes = list(dict.fromkeys(method.with_keep(keep, group.shape, lm.dtype) for keep in GRID))
            plan[group.name] = trial.shrink(group, sizes, problems, allowed)
    return plan


class _Trial:
    """A copy of a model whose layers are replaced one after another, and its KL divergence from the original."""

    def __init__(self, lm: LanguageModel, batches: Sequence[Batch]) -> None:
        self._trial = replace(lm, model=deepcopy(lm.model))
        self._metric = KLMetric(lm, batches)

    def shrink(
        self, group: SolveGroup, sizes: Sequence[Method], problems: Mapping[str, Problem], allowed: float
    ) -> Method | None:
        """Replace `group` by the smallest of `sizes` with an error of at most `allowed`; None if it stays dense."""
        chosen, layers = None, self._layers(group)
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            wholes = solve_matrices(self._trial, group, sizes[middle], problems)
            smaller = replace_group(self._trial, group, wholes, problems) is not None
            if smaller and self._metric(self._trial) <= allowed:
                chosen, layers, high = sizes[middle], self._layers(group), middle
            else:
                low = middle + 1
        for name, layer in layers.items():
            self._trial.model.set_submodule(name, layer)
        return chosen

    def _layers(self, group: SolveGroup) -> dict[str, nn.Module]:
        return {path: layer for site in group.sites for path, layer in self._trial.modules_of(site).items()}
