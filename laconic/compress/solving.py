"""The problem of each matrix: its weights, its statistics, and the order in which they are measured."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from laconic.calibrate import (
    Calibration,
    LayerStats,
    Problem,
    SequentialConfig,
    Statistic,
    concatenate_problems,
    concatenate_stats,
    sequential_calibrate,
)
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.calibrate.measured_once import calibrate_once
from laconic.calibrate.sequential import LayerProblems
from laconic.compress.solve_groups import LayerSet, SolveGroup, all_groups
from laconic.methods import Method
from laconic.model import LanguageModel, Site
from laconic.progress import silent

Item = TypeVar("Item")
Calibrate = Callable[[Sequence[Site]], Iterator[LayerProblems]]
"""Measures layers block by block."""


class Problems(Mapping[str, Problem]):
    """The problem of every matrix that is solved by itself, by its name; each is built when it is looked up.

    Weights are copied on look-up if the model computes in another dtype than it is stored in, or if a group has several
    layers. The weights of the whole model are therefore never copied at once.

    Args:
        dtype: the dtype that the model is stored in.
        groups: the matrices by name, as groups of the layers that are solved as one.
        stats: the statistics of each matrix, by its name.
    """

    def __init__(self, dtype: torch.dtype, groups: Mapping[str, SolveGroup], stats: Mapping[str, LayerStats]) -> None:
        self._dtype = dtype
        self._groups = groups
        self.stats = stats

    def __getitem__(self, name: str) -> Problem:
        weights = [site.weight().to(self._dtype) for site in self._groups[name].sites]
        return Problem(weight=weights[0] if len(weights) == 1 else torch.cat(weights), stats=self.stats[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def with_stats(self, stats: Mapping[str, LayerStats]) -> "Problems":
        """Return problems with the same matrices and masks, but other statistics (by name)."""
        replaced = {name: stats.get(name, LayerStats()) for name in self._groups}
        for name, group_stats in replaced.items():
            # Keep the object: its cached solutions were computed with the same mask.
            group_stats.support = self.stats[name].support
        return Problems(self._dtype, self._groups, replaced)


def find_problems(lm: LanguageModel, layer_sets: Sequence[LayerSet], stats: Mapping[str, LayerStats]) -> Problems:
    """Build the problem of every matrix in the groups of all alternatives.

    Args:
        lm: the model.
        layer_sets: the targeted layers.
        stats: statistics by layer name; layers without any get empty ones.
    """
    groups = {matrix.name: matrix for group in all_groups(layer_sets) for matrix in group.matrices}
    stats_by_group = {
        name: concatenate_stats(
            _add_supports(group.sites, [stats.get(site.name, LayerStats()) for site in group.sites])
        )
        for name, group in groups.items()
    }
    return Problems(lm.dtype, groups, stats_by_group)


def iterate_problems(
    items: Sequence[Item],
    sites_of: Callable[[Item], Sequence[Site]],
    calibrate: Calibrate | None,
    data: Calibration | None,
    label: str,
) -> Iterator[tuple[Item, list[Problem] | None]]:
    """Yield each item in forward order with the problems of its layers.

    With sequential calibration, the layers of an item are measured after the caller changed the items of earlier
    blocks. Without it, the caller has measured all layers before, and gets None.

    Args:
        items: groups of layers, or attentions and feed-forwards, in forward order.
        sites_of: returns the layers of an item that are measured.
        calibrate: starts `sequential_calibrate` for layers; None without sequential calibration.
        data: the calibration data, which show progress; None if there are none.
        label: the description of the progress.
    """
    if calibrate is None:
        for item in (silent if data is None else data.track)(items, label):
            yield item, None
        return
    # Several items may have the same layers, which would then be counted several times.
    for step in calibrate(list({site.name: site for item in items for site in sites_of(item)}.values())):
        problems = {site.name: problem for site, problem in step}
        del step
        names = [[site.name for site in sites_of(item)] for item in items]
        present = [(item, own) for item, own in zip(items, names, strict=True) if own[0] in problems]
        for number, (item, own) in enumerate(present):
            yield item, [problems[name] for name in own]
            # The memory of a problem is needed for the next ones.
            needed = {name for _, later in present[number + 1 :] for name in later}
            problems = {name: problem for name, problem in problems.items() if name in needed}


def problems_by_matrix(group: SolveGroup, problems: Sequence[Problem]) -> dict[str, Problem]:
    """Return the problem of each matrix of a group by its name, with the present pruning masks.

    Args:
        group: the group.
        problems: the problem of each layer of the group.
    """
    if group.stack is None:
        return {group.name: _join_problems(group, problems)}
    return {
        matrix.name: _join_problems(matrix, [problem]) for matrix, problem in zip(group.matrices, problems, strict=True)
    }


def _join_problems(group: SolveGroup, problems: Sequence[Problem]) -> Problem:
    stats = _add_supports(group.sites, [problem.stats for problem in problems])
    return concatenate_problems(
        [replace(problem, stats=masked) for problem, masked in zip(problems, stats, strict=True)]
    )


def _add_supports(sites: Sequence[Site], stats: Sequence[LayerStats]) -> list[LayerStats]:
    """The statistics with the present pruning masks of the layers; if one layer of a group has a mask, all get one."""
    supports = [site.support for site in sites]
    if all(support is None for support in supports):
        return [_add_support(layer_stats, None) for layer_stats in stats]
    masks = [
        torch.ones(site.shape, dtype=torch.bool, device=site.weight().device) if support is None else support
        for site, support in zip(sites, supports, strict=True)
    ]
    return [_add_support(layer_stats, mask) for layer_stats, mask in zip(stats, masks, strict=True)]


def _add_support(stats: LayerStats, support: Bool[Tensor, "out in"] | None) -> LayerStats:
    # Keep the object if the mask is the same, because its cached solutions serve other sizes too.
    return stats if support is stats.support else LayerStats(stats, support, stats.token_count)


def serve_every_size(methods: Iterable[Method], groups: Iterable[SolveGroup]) -> bool:
    """Whether the solutions that methods cache for some groups serve every size, so that no statistics are kept.

    The solutions of experts are dropped one by one, and solved again from their statistics.
    """
    return all(method.caches_solution for method in methods) and not any(group.stack for group in groups)


def choose_planning(
    lm: LanguageModel, data: Calibration | None, needs: Collection[type[Statistic]], once: bool
) -> Calibrate | None:
    """Return the function that measures the layers of a streamed model for a plan, one block at a time.

    Args:
        lm: the model.
        data: the calibration data; None if there are none.
        needs: the types of statistics.
        once: keep the solutions for the pass that follows the plan (`laconic.calibrate.measured_once`).

    Returns:
        The function; None for a model in memory, whose problems are all known.
    """
    if lm.loans is None:
        return None
    if once and data is not None:
        return partial(calibrate_once, lm, data, needs, writes=False)
    return partial(blockwise_calibrate, lm, data, needs, writes=False)


def choose_calibration(
    lm: LanguageModel,
    data: Calibration | None,
    needs: Collection[type[Statistic]],
    config: SequentialConfig | None,
    gradient_stats: Mapping[str, LayerStats] | None,
    once: bool,
) -> Calibrate | None:
    """Return the function that measures layers while others are replaced; None if all are measured before.

    Args:
        lm: the model. If it is streamed, one block is measured at a time.
        data: the calibration data; None if there are none.
        needs: the types of statistics.
        config: settings of sequential calibration; None for statistics of the original model.
        gradient_stats: gradient statistics that were collected before; None to collect them.
        once: use the solutions that a plan of a streamed model has left.
    """
    if lm.loans is not None and once and data is not None:
        return partial(calibrate_once, lm, data, needs, writes=True)
    if lm.loans is not None:
        return partial(blockwise_calibrate, lm, data, needs, sequential=config is not None)
    if config is None or data is None:
        return None
    return partial(sequential_calibrate, lm, data, needs, config=config, gradient_stats=gradient_stats)
