"""Compress every targeted matrix of a model by one method: collect statistics, plan sizes, solve, replace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from laconic import processes
from laconic.allocate import Currency, Plan, site_names
from laconic.cache import cache_limit
from laconic.calibrate import (
    Calibration,
    InputCovariance,
    LayerStats,
    SequentialConfig,
    Statistic,
    collect_stats,
)
from laconic.calibrate.passes import DEFAULT_WORKLOAD, Workload, evaluating
from laconic.calibrate.sequential import check_anchored
from laconic.compress import checks, solver_cache
from laconic.compress.allocators import ALLOCATORS, Allocation, AllocationRequest, AllocationResult, Allocator
from laconic.compress.allocators.streamed_copies import take_over_copy
from laconic.compress.fitted import fit_plan
from laconic.compress.plan_file import read_plan, write_plan
from laconic.compress.progress_log import ProgressLog
from laconic.compress.replacing import put_empty_formats
from laconic.compress.solve_and_replace import solve_and_replace
from laconic.compress.solve_groups import SolveGroup, TargetedLayers, all_groups, find_targeted, planned_groups
from laconic.compress.solving import (
    Problems,
    choose_calibration,
    find_problems,
    iterate_problems,
    serve_every_size,
)
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, must_be
from laconic.methods import Method, statistics_for
from laconic.model import DEFAULT_TARGETS, LanguageModel, Site

Keep = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Compress(Step):
    """Compress every targeted matrix by one method.

    Args:
        method: the method with its parameters.
        targets: the matrices to compress: groups (`attention`, `ffn`, `experts`, `head`, `embedding`), `blocks` for all
            inside the blocks, `all`, or globs over the names of layers.
        keep: fraction of the targeted bytes kept, in (0, 1], for all or by group (`{attention: 0.5, ffn: 0.3}`). None
            when the method has its own size.
        allocate: how the budget is shared. `uniform` keeps the same fraction of every matrix, `spectrum` spends where
            the predicted loss falls most, `threshold` makes every matrix as small as `error` allows, `global` prunes by
            one threshold for the scores of all matrices. `Q4_K_M` and other file types of llama.cpp set the `grid` of
            each matrix.
        currency: what `keep` counts under `spectrum`: bytes, parameters or MACs of the targeted matrices, or the
            measured latency of the whole model.
        error: KL divergence allowed under `threshold` on the calibration rows, nats per prediction.
        workload: batch size and length of the forward pass that `latency` and `threshold` time.
        share_inputs: let matrices that read the same input share one input factor: all of them under `uniform`, those
            with less predicted loss under `spectrum`.
        sequential: solve block by block, on inputs with the errors of earlier blocks.
        anchored: solve layer by layer in order, and fit each layer to the outputs of the original model.
        refresh: with `sequential` or `anchored`, collect the gradients again after this many blocks.
        allow_dense: accept that more than a tenth of the targeted parameters is in no layer that can be compressed,
            such as experts that a class computes by code of its own. `keep` then counts only the others.
        plan: reuse this plan instead of making one; its layers are then the targets.

    Raises:
        UserError: the size is given twice or not at all, or parameters contradict each other.

    Example:
        >>> from laconic.methods import Svd
        >>> Compress(method=Svd(), keep=0.5).needs_data
        False
    """

    name = "compress"
    example = "method: svd, keep: 0.5"
    example_needs_data = False

    method: Method
    keep: Keep | dict[str, Keep] | None = None
    allocate: Allocation = "uniform"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    currency: Currency = "bytes"
    error: Annotated[float, Field(gt=0)] | None = None
    workload: Workload = DEFAULT_WORKLOAD
    share_inputs: bool = False
    sequential: bool = False
    anchored: bool = False
    refresh: Annotated[int, Field(ge=1)] | None = None
    allow_dense: bool = False
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise must_be("targets", "a list of at least one group or glob", [])
        if self.plan is None:
            self._allocator.check(self)
        if self.share_inputs and not self.method.shares_inputs:
            raise UserError(f"share_inputs must be left out: the method '{self.method.name}' makes no input factor.")
        if self.refresh is not None and not self.is_sequential:
            raise must_be("refresh", "left out without sequential or anchored", self.refresh)
        if self.is_sequential:
            checks.check_sequential(self._config, self.needs, self.methods)

    @property
    def methods(self) -> tuple[Method, ...]:
        return (self.method,) if self.plan is None else tuple(method for method in self.plan.values() if method)

    @property
    def families(self) -> frozenset[str]:
        return frozenset({self.method.family})

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        needs = statistics_for(self.methods, self._needs_losses)
        return needs | {InputCovariance} if self.anchored else needs

    @property
    def needs_data(self) -> bool:
        return bool(self.needs) or (self.plan is None and self._allocator.needs_data(self))

    @property
    def collects_stats(self) -> bool:
        return bool(self.needs) and not self.is_sequential

    @property
    def _allocator(self) -> Allocator:
        return ALLOCATORS[self.allocate]

    @property
    def is_sequential(self) -> bool:
        """True if the layers are solved in order, on inputs with the errors of earlier layers."""
        return self.sequential or self.anchored

    @property
    def _config(self) -> SequentialConfig:
        return SequentialConfig(anchored=self.anchored, refresh=self.refresh)

    @property
    def _needs_losses(self) -> bool:
        return self.plan is None and self._allocator.needs_losses(self)

    @property
    def _needs_stats_first(self) -> bool:
        """True if planning needs statistics, which sequential calibration would only collect during solving."""
        return self.plan is None and self._allocator.needs_statistics(self)

    def sites(self, lm: LanguageModel) -> list[Site]:
        """The targeted layers of `lm`, or those that the plan names.

        Raises:
            UserError: the plan names a layer that `lm` does not have, or that cannot be compressed.
        """
        return self._find_targeted(lm).sites

    def solves_once(self, groups: Sequence[SolveGroup]) -> bool:
        """Whether `groups` of a streamed model are solved once, for the plan, and replaced by solutions from disk."""
        alone = processes.world_size() == 1 and not self.share_inputs
        return alone and self._needs_losses and serve_every_size(self.methods, groups)

    def _find_targeted(self, lm: LanguageModel) -> TargetedLayers:
        return find_targeted(lm, self.targets, self.share_inputs, self.plan, self._allocator.stores_rows(self.method))

    def check(self, lm: LanguageModel) -> None:
        self._check_targeted(lm)

    def dry_run(self, lm: LanguageModel) -> None:
        self._put_empty_formats(lm, self._find_targeted(lm))

    def check_and_dry_run(self, lm: LanguageModel) -> None:
        self._put_empty_formats(lm, self._check_targeted(lm))

    def _check_targeted(self, lm: LanguageModel) -> TargetedLayers:
        cache_limit()  # An invalid cache size is an error before any work, not after solving.
        targeted = self._find_targeted(lm)
        layer_sets = targeted.layer_sets
        if self.plan is None and not self.allow_dense:
            checks.check_dense(targeted.coverage, lm, self.targets)
        if self.keep is not None and self.plan is None:
            checks.check_overheads(self.method, self.keep, layer_sets, lm.dtype)
        request = AllocationRequest(self, lm, layer_sets)
        plan = self._allocator.plan_from_shapes(request) if self.plan is None else self.plan
        checks.check_layers(layer_sets, self.method, plan)
        check_anchored(self._config, targeted.sites)
        return targeted

    def _put_empty_formats(self, lm: LanguageModel, targeted: TargetedLayers) -> None:
        request = AllocationRequest(self, lm, targeted.layer_sets)
        plan = self._allocator.plan_from_shapes(request) if self.plan is None else self.plan
        groups = planned_groups(plan, targeted.layer_sets)
        put_empty_formats(lm, fit_plan(plan, groups), groups)

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Collect statistics, plan, and replace the layers.

        Solutions of an earlier run on the same model and data are reused.

        Args:
            lm: the model, changed in place.
            data: calibration data; None is allowed if the step needs none.

        Returns:
            The methods and bytes of every targeted layer.

        Raises:
            UserError: data is needed and missing or empty, or targets, groups or the budget do not fit the model.
        """
        if self.needs_data and data is None:
            raise UserError(f"The method '{self.method.name}' needs calibration data; name a source of it.")
        targeted = self._check_targeted(lm)
        if data is None or not self.needs or lm.loans is not None:
            return self._plan_and_replace(lm, targeted, {}, data)
        if self.is_sequential:
            # Sequential calibration collects its own statistics; the plan may need some before it.
            stats = collect_stats(lm, data, self.needs, targeted.sites) if self._needs_stats_first else {}
            return self._plan_and_replace(lm, targeted, stats, data)
        joint = [group for layer_set in targeted.layer_sets for group in layer_set.joint]
        groups = all_groups(targeted.layer_sets) if self._needs_losses else joint
        names = [group.name for group in groups]
        key = solver_cache.key_of_step(lm, data, self.methods, self.needs, [str(self._needs_losses), *names])
        cached = solver_cache.load_entry(key, lm.device, self.needs)
        if cached is not None:
            problems = find_problems(lm, targeted.layer_sets, {}).with_stats(cached)
            return self._plan_and_replace(lm, targeted, {}, data, problems)
        problems = find_problems(lm, targeted.layer_sets, collect_stats(lm, data, self.needs, targeted.sites))
        outcome = self._plan_and_replace(lm, targeted, {}, data, problems)
        stats = {matrix.name: problems.stats[matrix.name] for group in groups for matrix in group.matrices}
        solver_cache.save_entry(key, stats, statistics=not serve_every_size(self.methods, groups))
        return outcome

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        reason = checks.whole_model_reason(self, self.allocate, self.anchored, self.needs, self._needs_stats_first)
        return reason or checks.embedding_reason(self, lm, self.is_sequential)

    def apply_with(
        self, lm: LanguageModel, stats: Mapping[str, LayerStats], data: Calibration | None = None
    ) -> Outcome:
        return self._plan_and_replace(lm, self._find_targeted(lm), stats, data)

    def _plan_and_replace(
        self,
        lm: LanguageModel,
        targeted: TargetedLayers,
        stats: Mapping[str, LayerStats],
        data: Calibration | None,
        problems: Problems | None = None,
    ) -> Outcome:
        layer_sets, sites = targeted.layer_sets, targeted.sites
        once = self.solves_once(all_groups(layer_sets))
        if problems is None:
            problems = find_problems(lm, layer_sets, stats) if lm.loans is None else Problems(lm.dtype, {}, {})
        allocation = read_plan(lm) if self.plan is None else AllocationResult(dict(self.plan))
        if allocation is None:
            # One block of a streamed model is in memory at a time; a plan that needs all problems measures them before.
            needs = None if lm.loans is None else self.needs
            allocation = self._allocator.plan(AllocationRequest(self, lm, layer_sets, problems, data, needs, once))
            write_plan(lm, allocation)
        allocation = allocation._replace(plan=fit_plan(allocation.plan, all_groups(layer_sets)))
        take_over_copy(lm, allocation)
        # Every process must use the same plan, even if their results differ by rounding.
        plan, predicted, allocated = processes.broadcast(allocation._replace(record=dict(allocation.record)))
        record = checks.dense_share(targeted.coverage) | dict(allocated)
        untied, before = lm.sites_to_untie(sites), lm.stored_nbytes(sites)
        final_plan, after = dict(plan), dict(before)
        config, first = self._config if self.is_sequential else None, stats if self._needs_stats_first else None
        calibrate = choose_calibration(lm, data, self.needs, config, first, once)
        groups = [group for group in planned_groups(plan, layer_sets) if plan[group.name] is not None]
        results = ProgressLog(lm).resume(groups, plan)
        in_order = iterate_problems(groups, lambda group: group.sites, calibrate, data, "Compressing the layers")
        # Sequential calibration runs the blocks, and dropout would add noise to its statistics.
        with evaluating(lm):
            results |= solve_and_replace(lm, groups, plan, in_order, problems)
        for result in (results[group.name] for group in groups):
            if result.sizes is None:
                final_plan[result.group] = None
            after |= result.sizes or {}
            if result.tokens:
                record["experts"] = record.get("experts", {}) | dict(result.tokens)
        if self.keep is not None and self.plan is None and self.allocate == "uniform":
            record |= checks.shortfall(self.keep, layer_sets, after, lm.dtype)
        compressed = {name for line, method in final_plan.items() if method for name in site_names(line)}
        return Outcome(
            plan=final_plan,
            before=before,
            after=after,
            untied=tuple(name for name in untied if name in compressed),
            predicted_loss=predicted,
            found=record,
        )
