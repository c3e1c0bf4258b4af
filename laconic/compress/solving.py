"""Measure the problem of each group of layers, and replace the layers by the solution."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate import (
    Calibration,
    LayerStats,
    Problem,
    concatenate_problems,
    concatenate_stats,
)
from laconic.compress.solve_groups import LayerSet, SolveGroup, all_groups
from laconic.formats import Format, LowRank, split_rows
from laconic.methods import Method
from laconic.model import LanguageModel, Site
from laconic.numerics.moments import check_finite
from laconic.progress import silent

Item = TypeVar("Item")


class Problems(Mapping[str, Problem]):
    """The problem of every group of layers, by group name; each is built when it is looked up.

    Weights are copied on look-up if the model computes in another dtype than it is stored in, or if a group has several
    layers. The weights of the whole model are therefore never copied at once.

    Args:
        dtype: the dtype that the model is stored in.
        groups: the groups by name.
        stats: the statistics of each group, by its name.
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
        """Return problems with the same matrices and masks, but other statistics (by group name)."""
        replaced = {name: stats.get(name, LayerStats()) for name in self._groups}
        for name, group_stats in replaced.items():
            # Keep the object: its cached solutions were computed with the same mask.
            group_stats.support = self.stats[name].support
        return Problems(self._dtype, self._groups, replaced)


def find_problems(lm: LanguageModel, layer_sets: Sequence[LayerSet], stats: Mapping[str, LayerStats]) -> Problems:
    """Build the problem of every group of all alternatives.

    Args:
        lm: the model.
        layer_sets: the targeted layers.
        stats: statistics by layer name; layers without any get empty ones.
    """
    groups = {group.name: group for group in all_groups(layer_sets)}
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
    calibrate: Callable[[Sequence[Site]], Iterator[list[tuple[Site, Problem]]]] | None,
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
    for step in calibrate([site for item in items for site in sites_of(item)]):
        problems = {site.name: problem for site, problem in step}
        for item in items:
            if sites_of(item)[0].name in problems:
                yield item, [problems[site.name] for site in sites_of(item)]


def join_problems(group: SolveGroup, problems: Sequence[Problem]) -> Problem:
    """Join the problems of the layers of a group, with their present pruning masks."""
    stats = _add_supports(group.sites, [problem.stats for problem in problems])
    return concatenate_problems(
        [replace(problem, stats=masked) for problem, masked in zip(problems, stats, strict=True)]
    )


def _add_supports(sites: Sequence[Site], stats: Sequence[LayerStats]) -> list[LayerStats]:
    """The statistics with the present pruning masks of the layers; if one layer of a group has a mask, all get one."""
    if all(site.support is None for site in sites):
        return [_add_support(layer_stats, None) for layer_stats in stats]
    masks = [
        torch.ones(site.shape, dtype=torch.bool, device=site.weight().device) if site.support is None else site.support
        for site in sites
    ]
    return [_add_support(layer_stats, mask) for layer_stats, mask in zip(stats, masks, strict=True)]


def _add_support(stats: LayerStats, support: Bool[Tensor, "out in"] | None) -> LayerStats:
    # Keep the object if the mask is the same, because its cached solutions serve other sizes too.
    return stats if support is stats.support else LayerStats(stats, support)


def finite_weight(lm: LanguageModel, group: SolveGroup, problem: Problem) -> Float[Tensor, "out in"]:
    """Return the weight of a problem in the dtype that the model is stored in.

    Args:
        lm: the model.
        group: the layers, for their name in the error.
        problem: the problem of the group.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weight = problem.weight.to(lm.dtype)
    check_weight(group.name, weight)
    return weight


def check_weight(name: str, weight: Tensor) -> None:
    """Raise UserError if a weight of the layer or parameter `name` is NaN or infinite."""
    check_finite(weight, f"The weights of '{name}' are not finite; use a checkpoint without NaN and infinity.")


def replace_layers(lm: LanguageModel, group: SolveGroup, whole: Format, problem: Problem) -> dict[str, int] | None:
    """Replace the layers of a group by their compressed form.

    Args:
        lm: the model, changed in place.
        group: the layers to replace.
        whole: the compressed matrix of all layers, (Σ out, in).
        problem: the problem that was solved; if it has means, the biases are adjusted to remove the mean error.

    Returns:
        The bytes of each layer afterwards. None if nothing was replaced, because the format is neither smaller than the
        present one nor has more zeros.
    """
    nonzero = group.numel if whole.support is None else int(whole.support.count_nonzero())
    if whole.nbytes() >= _stored_nbytes(lm, group) and nonzero >= _nonzero_count(group):
        return None
    formats = _split_format(whole, group)
    with torch.no_grad():
        # The factors are stored rounded but multiplied in float32, so the bias is computed from the same product.
        bias = problem.bias(deepcopy(whole).float().dense())
    biases = [None] * len(group.sites) if bias is None else bias.float().split(group.rows)
    sizes = {site.name: format.nbytes() for site, format in zip(group.sites, formats, strict=True)}
    for site, format, site_bias in zip(group.sites, formats, biases, strict=True):
        lm.replace(site, format, site_bias)
    return sizes


def put_empty_format(lm: LanguageModel, group: SolveGroup, method: Method) -> None:
    """Replace the layers of a group in a model without weights, under the same condition as `replace_layers`.

    Args:
        lm: the model on the meta device, changed in place.
        group: the layers to replace.
        method: the method with its size.
    """
    nonzero = _nonzero_count(group)
    whole = method.meta_format(group.shape, nonzero if nonzero < group.numel else None).to(lm.dtype)
    remaining = group.numel if whole.support is None else whole.count
    if whole.nbytes() >= _stored_nbytes(lm, group) and remaining >= nonzero:
        return
    for site, format in zip(group.sites, _split_format(whole, group), strict=True):
        lm.replace(site, format)


def _stored_nbytes(lm: LanguageModel, group: SolveGroup) -> int:
    """Stored bytes of the group's present layers."""
    return sum(lm.site_nbytes(site) for site in group.sites)


def _nonzero_count(group: SolveGroup) -> int:
    """Number of weights that no earlier step has pruned."""
    modules = [(site.module, site.shape) for site in group.sites]
    return sum(
        module.count if isinstance(module, Format) and module.support is not None else shape[0] * shape[1]
        for module, shape in modules
    )


def _split_format(whole: Format, group: SolveGroup) -> tuple[Format, ...]:
    if len(group.sites) == 1:
        return (whole,)
    assert isinstance(whole, LowRank), "only methods that make an input factor are given several matrices"
    return split_rows(whole, group.rows)
