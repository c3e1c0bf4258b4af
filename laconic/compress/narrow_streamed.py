"""Remove heads and channels of a streamed model, one block at a time.

Each block is measured, narrowed and written back. Where layers compete, or where heads of several blocks must go
together, the parts that stay are chosen in a pass before, and kept in the scratch folder. Otherwise they are chosen
when the block is on loan.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from laconic.calibrate import Calibration, InputCovariance, LayerStats, Mean, Statistic
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.calibrate.gates import gate_gradients
from laconic.compress.kept_choice import choose_once
from laconic.compress.progress_log import find_finished_parts
from laconic.compress.step import Outcome
from laconic.compress.width_counts import WidthCounts
from laconic.compress.width_parts import (
    BY_GATES,
    NEEDS,
    Importance,
    Measured,
    RemovalOrder,
    gate_scores,
    measure_parts,
    order_removals,
    output_problems,
    rank_parts,
    remove_parts,
)
from laconic.model import Group, LanguageModel
from laconic.model.prunable_group import CoupledGroups, PrunableGroup, couple_groups, prunable_groups
from laconic.model.width import keep_bias_columns, update_config_widths


@dataclass(frozen=True)
class Narrowing:
    """The parts that a step removes, and the way in which it does.

    Args:
        groups: the groups that lose parts.
        counts: the importance of parts, and the number of those that stay.
        refit: fit the remaining columns of the output projections, and their biases.
        add_bias: give a bias to output projections that have none.
        sequential: measure on inputs with the errors of earlier blocks.
    """

    groups: Collection[Group]
    counts: WidthCounts
    refit: bool
    add_bias: bool
    sequential: bool

    @property
    def importance(self) -> Importance:
        """The importance by which parts are ranked."""
        return self.counts.importance

    @property
    def centres(self) -> bool:
        """Whether the biases are adjusted also without a refit."""
        return self.importance == "variance"


def narrow_streamed(lm: LanguageModel, data: Calibration | None, narrowing: Narrowing) -> Outcome:
    """Choose and remove heads and channels of a streamed model.

    Args:
        lm: the model, changed in place.
        data: calibration data; None if nothing is measured.
        narrowing: the parts to remove.

    Returns:
        The bytes of every attention and feed-forward before and after.

    Raises:
        UserError: data is empty, or the blocks do not form a chain.
    """
    names = [site.name for group in prunable_groups(lm) for site in group.sites]
    before = _stored_nbytes(lm, names)
    all_coupled = couple_groups(prunable_groups(lm, tuple(narrowing.groups)))
    if not all_coupled:
        return Outcome(plan={}, before=before, after=before)
    choice = choose_once(lm, lambda: _choose(lm, data, narrowing, all_coupled))
    counts, chosen = choice["counts"], choice["parts"]
    expected: dict[str | None, set[str]] = {}
    for group in (group for coupled in all_coupled for group in coupled):
        expected.setdefault(group.writer.block, set()).add(group.name)
    find_finished_parts(lm, expected)
    # What planning has chosen needs no statistics but those of the refit.
    planned = len(chosen) == len(all_coupled) and not narrowing.sequential
    needs: frozenset[type[Statistic]] = frozenset() if planned else NEEDS[narrowing.importance]
    if narrowing.refit or narrowing.centres:
        needs |= {InputCovariance, Mean}
    writers = [group.writer for coupled in all_coupled for group in coupled]
    for problems in blockwise_calibrate(lm, data, needs, writers, sequential=narrowing.sequential):
        stats = {site.name: problem.stats for site, problem in problems}
        for coupled in all_coupled:
            own = tuple(group for group in coupled if group.writer.name in stats)
            if own:
                # Gates are measured once, before the first block is narrowed.
                chooses_now = narrowing.sequential and narrowing.importance not in BY_GATES
                parts = None if chooses_now else chosen.get(own[0].coupling)
                _narrow(lm, own, stats, narrowing, counts[own[0].coupling], parts)
        del problems, stats
    for coupled in all_coupled:
        for group in coupled:
            if group.bias is not None and not _is_own_bias(group):
                keep_bias_columns(lm, group.bias, chosen[group.coupling])
    update_config_widths(lm)
    return Outcome(plan={}, before=before, after=_stored_nbytes(lm, names))


def _stored_nbytes(lm: LanguageModel, names: Sequence[str]) -> dict[str, int]:
    present = {site.name: site for site in lm.sites(("blocks",))}
    return lm.stored_nbytes([present[name] for name in names])


def _narrow(
    lm: LanguageModel,
    coupled: CoupledGroups,
    stats: Mapping[str, LayerStats],
    narrowing: Narrowing,
    count: int,
    parts: Sequence[int] | None,
) -> None:
    """Narrow groups whose block is on loan, and add the parts that stay to the record of the block.

    Args:
        lm: the model.
        coupled: the groups.
        stats: the statistics of their output projections, by name.
        narrowing: as in `narrow_streamed`.
        count: the number of parts that stay.
        parts: the numbers of these parts; None to choose them by the statistics.
    """
    problems = output_problems(coupled, stats, narrowing.add_bias)
    if count == coupled[0].count:
        parts = range(count)
    elif parts is None:
        parts = order_removals(narrowing.importance, coupled, problems, {}, count).parts_left(count)
    for group, problem in zip(coupled, problems, strict=True):
        assert lm.loans is not None and group.writer.block is not None
        lm.loans.record(group.writer.block, {group.name: list(parts)})
        if count < group.count:
            kept = group if _is_own_bias(group) else replace(group, bias=None)
            remove_parts(lm, kept, problem, parts, refit=narrowing.refit, centre=narrowing.centres)


def _is_joint(coupled: CoupledGroups) -> bool:
    """Whether groups of several blocks lose the same parts, or share a table outside the blocks."""
    return len(coupled) > 1 or any(group.bias is not None and not _is_own_bias(group) for group in coupled)


def _is_own_bias(group: PrunableGroup) -> bool:
    """Whether the position bias of a group lies in its block; MPNet has one for all blocks, which is never on loan."""
    return f"{group.bias or ''}.".startswith(f"{group.writer.block}.")


def _choose(
    lm: LanguageModel, data: Calibration | None, narrowing: Narrowing, all_coupled: Sequence[CoupledGroups]
) -> dict[str, dict[str, object]]:
    """The number of parts that stay in all groups, and the parts themselves if a pass over all blocks is needed."""
    importance, orders = narrowing.importance, dict[str, RemovalOrder]()
    least = narrowing.counts.least
    if importance in BY_GATES and data is not None:
        gates = gate_gradients(lm, data, [group for coupled in all_coupled for group in coupled])
        orders = {key: rank_parts([gate_scores(importance, found)], least) for key, found in gates.items()}
    else:
        joint = [coupled for coupled in all_coupled if narrowing.counts.compares or _is_joint(coupled)]
        orders = _rank_blockwise(lm, data, narrowing, joint, least)
    counts = narrowing.counts.count(all_coupled, lambda coupled, _: orders[coupled[0].coupling])
    return {"counts": {**counts}, "parts": {key: order.parts_left(counts[key]) for key, order in orders.items()}}


def _rank_blockwise(
    lm: LanguageModel,
    data: Calibration | None,
    narrowing: Narrowing,
    joint: Sequence[CoupledGroups],
    least: int,
) -> dict[str, RemovalOrder]:
    """Rank the parts of groups whose blocks are on loan one after another."""
    waiting: dict[str, dict[str, Measured]] = {coupled[0].coupling: {} for coupled in joint}
    orders: dict[str, RemovalOrder] = {}
    writers = [group.writer for coupled in joint for group in coupled]
    if not joint:
        return {}
    for problems in blockwise_calibrate(lm, data, NEEDS[narrowing.importance], writers, writes=False):
        stats = {site.name: problem.stats for site, problem in problems}
        for coupled in joint:
            key = coupled[0].coupling
            for group in coupled:
                if group.writer.name in stats:
                    (problem,) = output_problems((group,), stats, narrowing.add_bias)
                    waiting[key][group.name] = measure_parts(narrowing.importance, group, problem)
            if key in waiting and len(waiting[key]) == len(coupled):
                measured = waiting.pop(key)
                orders[key] = rank_parts([measured[group.name] for group in coupled], least)
    return {coupled[0].coupling: orders[coupled[0].coupling] for coupled in joint}
