"""Narrow a model: remove attention heads, feed-forward channels and experts, so that it becomes smaller."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from laconic.calibrate import (
    Calibration,
    GradCovariance,
    InputCovariance,
    LayerStats,
    Mean,
    SequentialConfig,
    Statistic,
    collect_stats,
    sequential_calibrate,
)
from laconic.calibrate.gates import GateGradients, gate_gradients
from laconic.calibrate.passes import evaluating
from laconic.compress.narrow_experts import ExpertImportance, ExpertRemoval, check_expert_options
from laconic.compress.narrow_streamed import Narrowing, narrow_streamed
from laconic.compress.replacing import check_weight
from laconic.compress.solving import iterate_problems
from laconic.compress.step import Outcome, Step
from laconic.compress.width_budget import (
    Currency,
    check_budget,
    check_groups,
    check_keep_options,
    price_function,
    uniform_counts,
)
from laconic.compress.width_counts import WidthCounts
from laconic.compress.width_parts import (
    BY_GATES,
    NEEDS,
    Importance,
    RemovalOrder,
    order_removals,
    output_problems,
    remove_parts,
)
from laconic.errors import UserError
from laconic.model import Group, LanguageModel, Site
from laconic.model.prunable_group import CoupledGroups, couple_groups, prunable_groups
from laconic.model.prunable_layers import check_prunable
from laconic.model.width import keep_parts, update_config_widths

Fraction = Annotated[float, Field(gt=0, le=1)]
Ranking = Literal["local", "global"]


@dataclass(frozen=True, kw_only=True)
class Narrow(Step):
    """Remove the attention heads, feed-forward channels and experts that matter least.

    Args:
        heads: fraction of the attention heads kept, in (0, 1]. Heads that share one of several keys are removed
            together.
        channels: fraction of the feed-forward channels kept, in (0, 1].
        experts: fraction of the experts of a mixture kept, in (0, 1], with their rows of the router; every block keeps
            the same number. A token is read by at most as many experts as are left. Experts are removed before heads
            and channels are measured.
        keep: fraction of all attentions and feed-forwards kept, in place of heads and channels, which then compete.
        currency: what `keep` counts: bytes, or multiply-accumulates.
        importance: how heads and channels are ranked. `obs` predicts the rise of the KL divergence with the rest
            refitted; `taylor` and `taylor-squared` use gradients of gates, `variance` the variance of the inputs,
            `magnitude` the weights.
        expert_importance: how experts are ranked. `reap` takes the mean norm of an expert's output, times the weight of
            the router, over the tokens that the router sends to it; `frequency` counts these tokens.
        seed: seed of `expert_importance: random`.
        ranking: `local` keeps the same fraction of every layer, `global` compares the parts of all layers. Every layer
            keeps at least one part. Default: `local` without `keep`, `global` with it.
        refit: fit the remaining columns of the output projections, and their biases, by least squares.
        add_bias: also give a bias to output projections whose class has none.
        multiple: round the number of channels kept down to a multiple of this, unless that removes over 1 % more than
            requested.
        sequential: choose and refit in forward order, on inputs with the errors of earlier blocks.
        anchored: as `sequential`, and fit to the outputs of the original model.

    Raises:
        UserError: no size or two sizes are given, or parameters contradict each other.

    Example:
        >>> Narrow(heads=0.5, importance="magnitude", refit=False).needs_data
        False
    """

    name = "narrow"
    family = "width"
    example = "heads=0.5"
    size_parameters = ("heads", "channels", "experts", "keep")

    heads: Fraction | None = None
    channels: Fraction | None = None
    experts: Fraction | None = None
    keep: Fraction | None = None
    currency: Currency = "bytes"
    importance: Importance = "obs"
    expert_importance: ExpertImportance = "reap"
    seed: Annotated[int, Field(ge=0)] = 0
    ranking: Ranking | None = None
    refit: bool = True
    add_bias: bool = False
    multiple: Annotated[int, Field(ge=1)] = 8
    sequential: bool = False
    anchored: bool = False

    def __post_init__(self) -> None:
        sizes = (self.heads, self.channels)
        if (self.keep is not None and sizes != (None, None)) or not (self._narrows_layers or self.experts is not None):
            raise UserError(
                "The step 'narrow' needs a size: give narrow:heads=F, narrow:channels=F or both, or in place of them "
                "narrow:keep=F, or narrow:experts=F for a mixture of experts, with F in (0, 1]."
            )
        check_expert_options(self.experts, self.expert_importance, self.seed, self.ranking)
        check_keep_options(self.keep, self.currency, self.ranking)
        if self._is_sequential and not self._narrows_layers:
            raise UserError("sequential and anchored have no effect on experts; leave them out.")
        if self.anchored and not self.refit:
            raise UserError("anchored must be left out without refit, because refit is what fits the original outputs.")
        if self.sequential and not self.needs:
            raise UserError(
                f"sequential has no effect, because importance: {self.importance} without refit uses no inputs; leave "
                "sequential out."
            )

    @property
    def _narrows_layers(self) -> bool:
        """True if a size of heads or channels is given."""
        return any(size is not None for size in (self.heads, self.channels, self.keep))

    @property
    def _expert_removal(self) -> ExpertRemoval | None:
        """The removal of experts; None if all stay."""
        if self.experts is None or self.experts == 1:
            return None
        return ExpertRemoval(self.experts, self.expert_importance, self.seed)

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        """The types of statistics that are collected of the output projections."""
        if not self._narrows_layers:
            return frozenset()
        refitting: frozenset[type[Statistic]] = frozenset({InputCovariance, Mean}) if self.refit else frozenset()
        return NEEDS[self.importance] | refitting

    @property
    def needs_data(self) -> bool:
        by_gates = self._narrows_layers and self.importance in BY_GATES
        removal = self._expert_removal
        return bool(self.needs) or by_gates or self._is_sequential or (removal is not None and removal.needs_data)

    @property
    def _is_sequential(self) -> bool:
        return self.sequential or self.anchored

    @property
    def _global(self) -> bool:
        return self.ranking == "global" or self.keep is not None

    @property
    def _keeps(self) -> dict[Group, float]:
        """The fraction of heads and of channels that stays; approximate if `keep` is given."""
        return {Group.ATTENTION: self.keep or self.heads or 1.0, Group.FFN: self.keep or self.channels or 1.0}

    @property
    def _narrowing(self) -> Narrowing:
        counts = WidthCounts(self._keeps, self.keep, self.currency, self.multiple, self.importance, self._global)
        return Narrowing(self._groups, counts, self.refit, self.add_bias, self.sequential)

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        if self.anchored:
            return "anchored runs the original model beside the narrower one; leave out anchored"
        if self.sequential and GradCovariance in self.needs:
            return f"sequential importance: {self.importance} needs gradients of the whole model; leave out sequential"
        return None

    @property
    def _groups(self) -> tuple[Group, ...]:
        """The groups that lose parts; a fraction of 1 leaves a group unchanged."""
        sizes = {Group.ATTENTION: self.heads, Group.FFN: self.channels}
        return tuple(kind for kind, size in sizes.items() if (self.keep or size or 1) < 1)

    def check(self, lm: LanguageModel) -> None:
        if (removal := self._expert_removal) is not None:
            removal.check(lm)
        for kind in self._groups:
            check_prunable(lm, kind)
        all_coupled = couple_groups(prunable_groups(lm, self._groups))
        if self._groups:
            check_groups(all_coupled, lm, self._groups, compared=self._global, in_order=self._is_sequential)
        if self._groups and self.keep is not None:
            check_budget(all_coupled, self.keep, price_function(self.currency), self.multiple)

    def dry_run(self, lm: LanguageModel) -> None:
        if (removal := self._expert_removal) is not None:
            removal.dry_run(lm)
        all_coupled = couple_groups(prunable_groups(lm, self._groups))
        counts = uniform_counts(all_coupled, self._keeps, self.multiple)
        for group in (group for coupled in all_coupled for group in coupled):
            if (count := counts[group.coupling]) < group.count:
                sets_bias = self.add_bias and (self.refit or self.importance == "variance")
                bias = torch.empty(group.writer.shape[0], device=lm.device) if sets_bias else None
                keep_parts(lm, group, range(count), bias=bias)
        update_config_widths(lm)

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Measure the parts, choose those to remove, and remove them.

        Args:
            lm: the model, changed in place.
            data: calibration data; None is allowed if `importance` and `refit` need none.

        Returns:
            The bytes of every attention, feed-forward and mixture of experts before and after.

        Raises:
            UserError: data is missing or empty, nothing in `lm` can be removed, weights are not finite, or too little
                would stay.
        """
        if self.needs_data and data is None:
            raise UserError("The step 'narrow' needs calibration data; name a source of it.")
        self.check(lm)
        removal = self._expert_removal
        removed = None if removal is None else removal.apply(lm, data)
        if lm.loans is not None:
            outcome = narrow_streamed(lm, data, self._narrowing)
            return outcome if removed is None else removed.add_to(outcome)
        groups = prunable_groups(lm, self._groups)
        for site in (site for group in groups for site in group.sites):
            check_weight(site.name, site.weight())
        stats: Mapping[str, LayerStats] = {}
        gates: Mapping[str, GateGradients] = {}
        if data is not None and groups and self.importance in BY_GATES:
            gates = gate_gradients(lm, data, groups)
        # Sequential calibration collects its own statistics; only a comparison of layers needs them before it.
        if data is not None and groups and self.needs and (self._global or not self._is_sequential):
            stats = collect_stats(lm, data, self.needs, [group.writer for group in groups])
        outcome = self.solve(lm, stats, gates, data)
        return outcome if removed is None else removed.add_to(outcome)

    def solve(
        self,
        lm: LanguageModel,
        stats: Mapping[str, LayerStats],
        gates: Mapping[str, GateGradients],
        data: Calibration | None = None,
    ) -> Outcome:
        """Choose and remove heads and channels with given statistics, which can be used for several sizes.

        Args:
            lm: the model, changed in place.
            stats: statistics of the output projections, by layer name.
            gates: gradients of the gates, by `PrunableGroup.coupling`; used by the two kinds of `taylor`.
            data: calibration data, for sequential solving.
        """
        sites = [site for group in prunable_groups(lm) for site in group.sites]
        before = lm.stored_nbytes(sites)
        all_coupled = couple_groups(prunable_groups(lm, self._groups))
        calibrate = None
        if self._is_sequential and data is not None:
            config = SequentialConfig(anchored=self.anchored)
            needs = self.needs | {InputCovariance}
            calibrate = partial(sequential_calibrate, lm, data, needs, config=config, gradient_stats=stats or None)

        def order_of(coupled: CoupledGroups, least: int) -> RemovalOrder:
            problems = output_problems(coupled, stats, self.add_bias)
            return order_removals(self.importance, coupled, problems, gates, least)

        if all_coupled:
            # Sequential calibration runs the blocks, and dropout would add noise to its statistics.
            with evaluating(lm):
                counts = self._narrowing.counts.count(all_coupled, order_of)
                in_order = iterate_problems(all_coupled, _writers, calibrate, data, "Narrowing the layers")
                for coupled, measured in in_order:
                    count = counts[coupled[0].coupling]
                    if count == coupled[0].count:
                        continue
                    if measured is None:
                        problems = output_problems(coupled, stats, self.add_bias)
                    elif self.anchored:
                        problems = measured
                    else:
                        own_stats = {site.name: p.stats for site, p in zip(_writers(coupled), measured, strict=True)}
                        problems = output_problems(coupled, own_stats, self.add_bias)
                    parts = order_removals(self.importance, coupled, problems, gates, count).parts_left(count)
                    for group, problem in zip(coupled, problems, strict=True):
                        remove_parts(lm, group, problem, parts, refit=self.refit, centre=self.importance == "variance")
            update_config_widths(lm)
        present = {site.name: site for site in lm.sites(("blocks",))}
        return Outcome(plan={}, before=before, after=lm.stored_nbytes([present[name] for name in before]))


def _writers(coupled: CoupledGroups) -> list[Site]:
    return [group.writer for group in coupled]
