"""Compress every targeted matrix of a model by one method: measure, share the budget, solve, replace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from laconic import processes
from laconic.allocate import Currency, Plan, check_overhead, site_names
from laconic.cache import cache_limit
from laconic.calibrate import (
    Calibration,
    InputCovariance,
    LayerStats,
    Problem,
    SequentialConfig,
    Statistic,
    collect_stats,
)
from laconic.calibrate.passes import USUAL, Workload, evaluating
from laconic.compress import solver_cache
from laconic.compress.allocators import ALLOCATORS, Allocated, Allocation, Allocator, Job
from laconic.compress.checks import check_dense, check_not_coded, check_zeros_stay, dense_share, shortfall
from laconic.compress.size_spec import SizeSpec, check_refresh, check_sequential
from laconic.compress.solve_groups import (
    SolveGroup,
    TiedGroup,
    all_units,
    groups_in_plan,
    methods_by_unit,
    planned_units,
    sites_in_plan,
    split_by_group,
    tied_groups,
    warn_of_wide_groups,
)
from laconic.compress.solving import (
    Problems,
    find_problems,
    finite_weight,
    put_empty_format,
    replace_layers,
    sequential_problems,
)
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, must_be
from laconic.methods import Method, statistics_for
from laconic.model import DEFAULT_TARGETS, LanguageModel, Site
from laconic.progress import silent

Keep = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Compress(Step):
    """Compress every targeted matrix by one method.

    Args:
        method: the method with its parameters.
        targets: which matrices: groups (`attention`, `ffn`, `head`, `embedding`), `blocks` for all inside the blocks,
            `all`, or globs over the names of layers.
        keep: fraction of the targeted bytes kept, in (0, 1], for all or by group (`{attention: 0.5, ffn: 0.3}`). None
            when the method has its own size.
        allocate: how the budget is shared. `uniform` keeps the same fraction of every matrix, `spectrum` spends where
            the predicted loss falls most, `threshold` makes every matrix as small as `error` allows, `global` prunes by
            one threshold for the scores of all matrices.
        currency: what `keep` counts under `spectrum`: bytes, parameters or MACs of the targeted matrices, or the
            measured latency of the whole model.
        error: KL divergence allowed under `threshold` on the calibration rows, nats per prediction.
        workload: batch size and length of the forward pass that `latency` and `threshold` time.
        share_inputs: let matrices that read the same input share one input factor: all of them under `uniform`, those
            with less predicted loss under `spectrum`.
        sequential: solve block by block, on inputs that carry the errors of the blocks before.
        anchored: solve layer by layer in order, and fit each layer to the outputs of the original model.
        refresh: with `sequential` or `anchored`, collect the gradients again after this many blocks.
        allow_dense: accept that more than a tenth of the targeted parameters is in no layer that can be compressed,
            such as experts in one tensor. `keep` then counts the other parameters alone.
        plan: reuse this plan instead of making one; its layers are then the targets.

    Raises:
        UserError: the size is given twice or not at all, or parameters contradict each other.

    Example:
        >>> from laconic.methods import Svd
        >>> Compress(method=Svd(), keep=0.5).needs_data
        False
    """

    name = "compress"
    example = "method=svd,keep=0.5"
    example_needs_data = False

    method: Method
    keep: Keep | dict[str, Keep] | None = None
    allocate: Allocation = "uniform"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    currency: Currency = "bytes"
    error: Annotated[float, Field(gt=0)] | None = None
    workload: Workload = USUAL
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
            self._allocator.check(self._size_spec)
        if self.share_inputs and not self.method.shares_inputs:
            raise UserError(f"share_inputs must be left out: the method '{self.method.name}' makes no input factor.")
        check_refresh(self.refresh, self._is_sequential, self.needs)
        check_sequential(self.sequential, self.anchored, self.refresh, self._methods)

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        """The types of statistics that planning and solving need."""
        needs = statistics_for(self._methods, self._needs_losses)
        return needs | {InputCovariance} if self.anchored else needs

    @property
    def needs_data(self) -> bool:
        return bool(self.needs) or (self.plan is None and self._allocator.needs_data(self._size_spec))

    @property
    def collects_stats(self) -> bool:
        """True if the step runs `collect_stats` once over the model as it is, so that the result may be cached."""
        return bool(self.needs) and not self._is_sequential

    @property
    def _methods(self) -> tuple[Method, ...]:
        return (self.method,) if self.plan is None else tuple(method for method in self.plan.values() if method)

    @property
    def _allocator(self) -> Allocator:
        return ALLOCATORS[self.allocate]

    @property
    def _size_spec(self) -> SizeSpec:
        return SizeSpec(
            method=self.method,
            keep=self.keep,
            currency=self.currency,
            error=self.error,
            workload=self.workload,
            sequential=self._is_sequential,
        )

    @property
    def _needs_losses(self) -> bool:
        return self.plan is None and self._allocator.needs_losses(self._size_spec)

    @property
    def _needs_stats_first(self) -> bool:
        """True if planning needs statistics, which sequential calibration would only collect during solving."""
        return self.plan is None and self._allocator.needs_statistics(self._size_spec)

    @property
    def _is_sequential(self) -> bool:
        return self.sequential or self.anchored

    def check(self, lm: LanguageModel) -> None:
        # Raises an error for an invalid cache size before any work, not after solving.
        cache_limit()
        if self.plan is None:
            check_dense(lm, self.targets, self.allow_dense)
        groups = self._groups(lm)
        if self.keep is not None and self.plan is None:
            for keep, _ in split_by_group(self.keep, groups):
                check_overhead(self.method, keep, lm.dtype)
            # Raises an error if the budget is too small for the shapes.
            self._allocator.plan_from_shapes(self._job(lm, groups, {}, None))
        check_not_coded(groups)
        check_zeros_stay(groups, self.method, self.plan)
        for unit, method in methods_by_unit(groups, self.method, self.plan):
            if mistake := method.shape_error(unit.shape, f"'{unit.name}'"):
                raise mistake
        warn_of_wide_groups(groups, self.method, self.plan)

    def dry_run(self, lm: LanguageModel) -> None:
        groups = self._groups(lm)
        plan = self._allocator.plan_from_shapes(self._job(lm, groups, {}, None)) if self.plan is None else self.plan
        for unit in planned_units(plan, groups):
            method = plan[unit.name]
            if method is not None:
                put_empty_format(lm, unit, method)

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
        self.check(lm)
        if data is None or not self.needs:
            return self.solve(lm, {}, data)
        if self._is_sequential:
            # Sequential calibration collects its own statistics; only those that the plan needs come before it.
            stats = collect_stats(lm, data, self.needs, self.sites(lm)) if self._needs_stats_first else {}
            return self.solve(lm, stats, data)
        groups = self._groups(lm)
        units = all_units(groups) if self._needs_losses else [unit for family in groups for unit in family[-1]]
        key = solver_cache.key_of(lm, data, self._cache_key_parts(units), solver_cache.kinds_of(self._methods))
        kept = solver_cache.recall(key, lm.device)
        if kept is not None:
            return self._plan_and_replace(lm, groups, find_problems(lm, groups, {}).with_stats(kept), {}, data)
        problems = find_problems(lm, groups, collect_stats(lm, data, self.needs, self.sites(lm)))
        outcome = self._plan_and_replace(lm, groups, problems, {}, data)
        stats = {unit.name: problems.stats[unit.name] for unit in units}
        solver_cache.keep(key, stats, statistics=not all(method.caches_solution for method in self._methods))
        return outcome

    def apply_with(self, lm: LanguageModel, stats: Mapping[str, LayerStats], data: Calibration | None) -> Outcome:
        return self.solve(lm, stats, data)

    def _cache_key_parts(self, units: Sequence[SolveGroup]) -> list[str]:
        """Everything of this step that a cached solution depends on: all but the size."""
        statistics = sorted(kind.__name__ for kind in self.needs)
        methods = [repr(method.without_size()) for method in self._methods]
        return [*statistics, str(self._needs_losses), *methods, *(unit.name for unit in units)]

    def sites(self, lm: LanguageModel) -> list[Site]:
        """The targeted layers of `lm`, or those that the plan names.

        Raises:
            UserError: the plan names a layer that `lm` does not have, or that cannot be compressed.
        """
        return lm.sites(self.targets) if self.plan is None else sites_in_plan(self.plan, lm)

    def solve(self, lm: LanguageModel, stats: Mapping[str, LayerStats], data: Calibration | None = None) -> Outcome:
        """Plan and replace the layers with given statistics; the same statistics can be used for several sizes.

        Args:
            lm: the model, changed in place.
            stats: statistics by layer name.
            data: calibration data, for allocators that measure and for sequential solving.
        """
        groups = self._groups(lm)
        return self._plan_and_replace(lm, groups, find_problems(lm, groups, stats), stats, data)

    def _plan_and_replace(
        self,
        lm: LanguageModel,
        groups: Sequence[TiedGroup],
        problems: Problems,
        stats: Mapping[str, LayerStats],
        data: Calibration | None,
    ) -> Outcome:
        record = dense_share(lm, self.targets if self.plan is None else ("blocks",))
        job = self._job(lm, groups, problems, data)
        planned = self._allocator.plan(job) if self.plan is None else Allocated(dict(self.plan))
        # Every process solves all units, so all must use the same plan even if their results differ by rounding.
        plan, predicted, allocated = processes.broadcast(planned._replace(record=dict(planned.record)))
        record |= allocated
        units = [unit for unit in planned_units(plan, groups) if plan[unit.name] is not None]
        sites = self.sites(lm)
        untied, before = lm.sites_to_untie(sites), lm.stored_nbytes(sites)
        done, after = dict(plan), dict(before)
        if self._is_sequential and data is not None:
            config = SequentialConfig(anchored=self.anchored, refresh=self.refresh)
            first = stats if self._needs_stats_first else None
            pairs = sequential_problems(lm, data, units, self.needs, config, first)
        else:
            track = data.track if data is not None else silent
            pairs = ((unit, problems[unit.name]) for unit in track(units, "Compressing the layers"))
        # Sequential calibration runs the blocks, and dropout would add noise to its statistics.
        with evaluating(lm):
            for unit, problem in pairs:
                method = plan[unit.name]
                assert method is not None
                whole = method.compress(finite_weight(lm, unit, problem), problem.stats)
                sizes = replace_layers(lm, unit, whole, problem)
                if sizes is None:
                    done[unit.name] = None
                else:
                    after |= sizes
        if self.keep is not None and self.plan is None and self.allocate == "uniform":
            record |= shortfall(self.keep, groups, after, lm.dtype)
        compressed = {name for unit, method in done.items() if method for name in site_names(unit)}
        return Outcome(
            plan=done,
            before=before,
            after=after,
            untied=tuple(name for name in untied if name in compressed),
            predicted_loss=predicted,
            found=record,
        )

    def _job(
        self, lm: LanguageModel, groups: Sequence[TiedGroup], problems: Mapping[str, Problem], data: Calibration | None
    ) -> Job:
        return Job(size_spec=self._size_spec, lm=lm, groups=groups, problems=problems, data=data)

    def _groups(self, lm: LanguageModel) -> list[TiedGroup]:
        sites = self.sites(lm)
        return tied_groups(sites, self.share_inputs) if self.plan is None else groups_in_plan(self.plan, sites)
