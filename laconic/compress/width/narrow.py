"""Narrow a model: remove attention heads and feed-forward channels, so that its matrices become smaller."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from laconic.calibrate import (
    Calibration,
    InputCovariance,
    LayerStats,
    Mean,
    Problem,
    SequentialConfig,
    Statistic,
    collect_stats,
    sequential_calibrate,
)
from laconic.calibrate.collect_stats import GateGradients, gate_gradients
from laconic.calibrate.passes import evaluating
from laconic.compress.step import Outcome, Step
from laconic.compress.width.budget import (
    Currency,
    global_counts,
    price_function,
    share_budget,
    standardise_costs,
    uniform_counts,
)
from laconic.compress.width.importance import BY_GATES, NEEDS, Importance, order_removals
from laconic.compress.width.removal import (
    check_apart,
    check_enough,
    check_several,
    check_weights,
    output_problems,
    remove_parts,
    sequential_problems,
)
from laconic.errors import UserError
from laconic.model import Group, LanguageModel
from laconic.model.prunable_group import CoupledGroups, check_prunable, couple_groups, prunable_groups
from laconic.model.width import keep_parts, update_config_widths
from laconic.progress import silent

Fraction = Annotated[float, Field(gt=0, le=1)]
Ranking = Literal["local", "global"]


@dataclass(frozen=True, kw_only=True)
class Narrow(Step):
    """Remove the attention heads and feed-forward channels that matter least.

    Args:
        heads: fraction of the attention heads kept, in (0, 1]. Heads that share keys and values are removed together.
        channels: fraction of the feed-forward channels kept, in (0, 1].
        keep: in place of both, the fraction of all attentions and feed-forwards kept, heads compared with channels.
        currency: what `keep` counts: bytes, or multiply-accumulates.
        importance: how parts are ranked. `obs` predicts the rise of the KL divergence with the rest refitted; `taylor`
            and `taylor-squared` use gradients of gates, `variance` the variance of the inputs, `magnitude` the weights.
        ranking: `local` keeps as many parts in every layer, `global` compares all layers. Every layer keeps one part.
        refit: fit the remaining columns of the output projections, and their biases, by least squares.
        add_bias: also give a bias to output projections whose class has none.
        multiple: round the number of channels kept to a multiple of this, unless that removes over 1 % more than asked.
        sequential: choose and refit in forward order, on inputs that carry the errors of the blocks before.
        anchored: the same, and fit to the outputs of the original model.

    Raises:
        UserError: no size or two sizes are given, or parameters contradict each other.

    Example:
        >>> Narrow(heads=0.5, importance="magnitude", refit=False).needs_data
        False
    """

    name = "narrow"
    family = "width"
    example = "heads=0.5"

    heads: Fraction | None = None
    channels: Fraction | None = None
    keep: Fraction | None = None
    currency: Currency = "bytes"
    importance: Importance = "obs"
    ranking: Ranking | None = None
    refit: bool = True
    add_bias: bool = False
    multiple: Annotated[int, Field(ge=1)] = 8
    sequential: bool = False
    anchored: bool = False

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.heads is None and self.channels is None):
            raise UserError("The step 'narrow' needs a size: give heads, channels or both, or keep in place of them.")
        if self.keep is None and self.currency != "bytes":
            raise UserError("currency is what keep counts, and must be left out without it.")
        if self.keep is not None and self.ranking == "local":
            raise UserError("ranking must be global, or left out, with keep, which compares heads with channels.")
        if self.anchored and not self.refit:
            raise UserError(
                "anchored must be left out without refit, which is what aims at the outputs of the original."
            )
        if self.sequential and not self.needs:
            raise UserError(
                f"sequential must be left out where nothing looks at inputs, as importance: {self.importance} without "
                "refit does not."
            )

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        """The types of statistics that are collected of the output projections."""
        refitting: frozenset[type[Statistic]] = frozenset({InputCovariance, Mean}) if self.refit else frozenset()
        return NEEDS[self.importance] | refitting

    @property
    def needs_data(self) -> bool:
        return bool(self.needs) or self.importance in BY_GATES or self._is_sequential

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
    def _groups(self) -> tuple[Group, ...]:
        """The groups that lose parts; a fraction of 1 leaves a group unchanged."""
        sizes = {Group.ATTENTION: self.heads, Group.FFN: self.channels}
        return tuple(group for group, size in sizes.items() if (self.keep or size or 1) < 1)

    def check(self, lm: LanguageModel) -> None:
        for group in self._groups:
            check_prunable(lm, group)
        families = couple_groups(prunable_groups(lm, self._groups))
        if self._groups:
            check_several(lm, families)
        if self._groups and self.keep is not None:
            check_enough(families, self.keep, price_function(self.currency), self.multiple)
        if self._is_sequential:
            check_apart(lm, families)

    def dry_run(self, lm: LanguageModel) -> None:
        families = couple_groups(prunable_groups(lm, self._groups))
        counts = uniform_counts(families, self._keeps, self.multiple)
        for inner in (inner for family in families for inner in family):
            if (count := counts[inner.coupling]) < inner.count:
                moves = self.add_bias and (self.refit or self.importance == "variance")
                bias = torch.empty(inner.writer.shape[0], device=lm.device) if moves else None
                keep_parts(lm, inner, range(count), bias=bias)
        update_config_widths(lm)

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Measure the parts, choose those to remove, and remove them.

        Args:
            lm: the model, changed in place.
            data: calibration data; None is allowed if `importance` and `refit` need none.

        Returns:
            The bytes of every attention and feed-forward before and after.

        Raises:
            UserError: data is missing or empty, nothing in `lm` can be removed, weights are not finite, or too little
                would stay.
        """
        if self.needs_data and data is None:
            raise UserError("The step 'narrow' needs calibration data; name a source of it.")
        self.check(lm)
        inners = prunable_groups(lm, self._groups)
        check_weights(inners)
        stats: Mapping[str, LayerStats] = {}
        gates: Mapping[str, GateGradients] = {}
        if data is not None and inners and self.importance in BY_GATES:
            gates = gate_gradients(lm, data, inners)
        # Sequential calibration collects its own statistics; only a comparison of layers needs them before it.
        if data is not None and inners and self.needs and (self._global or not self._is_sequential):
            stats = collect_stats(lm, data, self.needs, [inner.writer for inner in inners])
        return self.solve(lm, stats, gates, data)

    def solve(
        self,
        lm: LanguageModel,
        stats: Mapping[str, LayerStats],
        gates: Mapping[str, GateGradients],
        data: Calibration | None = None,
    ) -> Outcome:
        """Choose and remove parts with given statistics; the same statistics can be used for several sizes.

        Args:
            lm: the model, changed in place.
            stats: statistics of the output projections, by layer name.
            gates: gradients of the gates, by `PrunableGroup.coupling`; used by the two kinds of `taylor`.
            data: calibration data, for sequential solving.
        """
        sites = [site for inner in prunable_groups(lm) for site in inner.sites]
        before = lm.stored_nbytes(sites)
        families = couple_groups(prunable_groups(lm, self._groups))
        if families:
            # Sequential calibration runs the blocks, and dropout would add noise to its statistics.
            with evaluating(lm):
                counts = self._count_parts(families, stats, gates)
                for family, problems in self._problems_in_order(lm, families, stats, data):
                    count = counts[family[0].coupling]
                    if count < family[0].count:
                        parts = order_removals(self.importance, family, problems, gates, count).parts_left(count)
                        for inner, problem in zip(family, problems, strict=True):
                            remove_parts(
                                lm, inner, problem, parts, refit=self.refit, centre=self.importance == "variance"
                            )
            update_config_widths(lm)
        every = {site.name: site for site in lm.sites(("blocks",))}
        return Outcome(plan={}, before=before, after=lm.stored_nbytes([every[name] for name in before]))

    def _problems_in_order(
        self,
        lm: LanguageModel,
        families: Sequence[CoupledGroups],
        stats: Mapping[str, LayerStats],
        data: Calibration | None,
    ) -> Iterator[tuple[CoupledGroups, Sequence[Problem]]]:
        if self._is_sequential and data is not None:
            sites = [inner.writer for (inner,) in families]
            met = sequential_calibrate(
                lm, data, self.needs | {InputCovariance}, sites, SequentialConfig(anchored=self.anchored), stats or None
            )
            return sequential_problems(families, met, self.anchored, self.add_bias)
        track = silent if data is None else data.track
        tracked = track(families, "Narrowing the layers")
        return ((family, output_problems(family, stats, self.add_bias)) for family in tracked)

    def _count_parts(
        self, families: Sequence[CoupledGroups], stats: Mapping[str, LayerStats], gates: Mapping[str, GateGradients]
    ) -> dict[str, int]:
        """The number of parts that stay, by `PrunableGroup.coupling`."""
        if not self._global:
            return uniform_counts(families, self._keeps, self.multiple)
        # Standard scores are computed over all parts, including those that always stay.
        least = 0 if self.importance == "variance" else 1
        every = [
            order_removals(self.importance, family, output_problems(family, stats, self.add_bias), gates, least)
            for family in families
        ]
        price = len if self.keep is None else price_function(self.currency)
        if self.importance == "variance":
            every = standardise_costs(every, [price(family) for family in families])
        pairs = list(zip(families, every, strict=True))
        if self.keep is not None:
            return share_budget(pairs, self.keep, price, self.multiple)
        return global_counts(pairs, self._keeps, price, self.multiple)
