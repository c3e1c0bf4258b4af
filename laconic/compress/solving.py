"""Build the problem of each unit, and replace the unit's layers by the solution."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate import (
    Calibration,
    LayerStats,
    Problem,
    SequentialConfig,
    Statistic,
    sequential_calibrate,
    stack,
    stacked,
)
from laconic.compress.solve_groups import SolveGroup, TiedGroup, all_units
from laconic.formats import Format, LowRank, split_rows
from laconic.methods import Method
from laconic.model import LanguageModel, Site
from laconic.numerics.moments import check_finite


class Problems(Mapping[str, Problem]):
    """The problem of every unit, by unit name; each is built when it is looked up.

    Weights are copied on look-up if the model computes in another dtype than it is stored in, or if a unit has several
    layers. The weights of the whole model are therefore never copied at once.

    Args:
        dtype: the dtype that the model is stored in.
        units: the units by name.
        stats: the statistics of each unit, by its name.
    """

    def __init__(self, dtype: torch.dtype, units: Mapping[str, SolveGroup], stats: Mapping[str, LayerStats]) -> None:
        self._dtype = dtype
        self._units = units
        self.stats = stats

    def __getitem__(self, name: str) -> Problem:
        return Problem(weight=self._weight(self._units[name]), stats=self.stats[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def with_stats(self, stats: Mapping[str, LayerStats]) -> "Problems":
        """Return problems with the same matrices and masks, but other statistics (by unit name)."""
        here = {name: stats.get(name, LayerStats()) for name in self._units}
        for name, what in here.items():
            # Keep the object: its cached solutions were computed with the same mask.
            what.support = self.stats[name].support
        return Problems(self._dtype, self._units, here)

    def _weight(self, unit: SolveGroup) -> Float[Tensor, "out in"]:
        weights = [site.weight().to(self._dtype) for site in unit.sites]
        return weights[0] if len(weights) == 1 else torch.cat(weights)


def find_problems(lm: LanguageModel, groups: Sequence[TiedGroup], stats: Mapping[str, LayerStats]) -> Problems:
    """Build the problem of every unit of all alternatives.

    Args:
        lm: the model.
        groups: the families of units.
        stats: statistics by layer name; layers without any get empty ones.
    """
    units = {unit.name: unit for unit in all_units(groups)}
    by_unit = {
        name: stacked(_add_supports(unit.sites, [stats.get(site.name, LayerStats()) for site in unit.sites]))
        for name, unit in units.items()
    }
    return Problems(lm.dtype, units, by_unit)


def sequential_problems(
    lm: LanguageModel,
    data: Calibration,
    units: Sequence[SolveGroup],
    needs: frozenset[type[Statistic]],
    config: SequentialConfig,
    gradient_stats: Mapping[str, LayerStats] | None,
) -> Iterator[tuple[SolveGroup, Problem]]:
    """Yield pairs of a unit and its problem, measured after the caller replaced the units of earlier blocks.

    Args:
        lm: the model, which the caller changes between two units.
        data: calibration data.
        units: the units in forward order.
        needs: the types of statistics to collect.
        config: settings of the sequential calibration.
        gradient_stats: gradient statistics by layer name, if they were collected before.
    """
    sites = [site for unit in units for site in unit.sites]
    for step in sequential_calibrate(lm, data, needs, sites, config, gradient_stats):
        problems = {site.name: problem for site, problem in step}
        for unit in units:
            if unit.sites[0].name in problems:
                parts = [problems[site.name] for site in unit.sites]
                stats = _add_supports(unit.sites, [part.stats for part in parts])
                yield unit, stack([replace(part, stats=here) for part, here in zip(parts, stats, strict=True)])


def _add_supports(sites: Sequence[Site], stats: Sequence[LayerStats]) -> list[LayerStats]:
    """The statistics with the present pruning masks of the layers; if one layer of a unit has a mask, all get one."""
    if all(site.support is None for site in sites):
        return [_add_support(what, None) for what in stats]
    masks = [
        torch.ones(site.shape, dtype=torch.bool, device=site.weight().device) if site.support is None else site.support
        for site in sites
    ]
    return [_add_support(what, mask) for what, mask in zip(stats, masks, strict=True)]


def _add_support(stats: LayerStats, support: Bool[Tensor, "out in"] | None) -> LayerStats:
    # Keep the object if the mask is the same, because its cached solutions serve other sizes too.
    return stats if support is stats.support else LayerStats(stats, support)


def finite_weight(lm: LanguageModel, unit: SolveGroup, problem: Problem) -> Float[Tensor, "out in"]:
    """Return the weight of a problem in the dtype that the model is stored in.

    Args:
        lm: the model.
        unit: the unit, for its name in the error.
        problem: the problem of the unit.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weight = problem.weight.to(lm.dtype)
    check_finite(weight, f"The weights of '{unit.name}' are not finite; take a checkpoint that is whole.")
    return weight


def replace_layers(lm: LanguageModel, unit: SolveGroup, whole: Format, problem: Problem) -> dict[str, int] | None:
    """Replace the layers of a unit by their compressed form.

    Args:
        lm: the model, changed in place.
        unit: the layers to replace.
        whole: the compressed matrix of all layers, (Σ out, in).
        problem: the problem that was solved; if it has means, the biases are adjusted to remove the mean error.

    Returns:
        The bytes of each layer afterwards. None if nothing was replaced, because the format is neither smaller than the
        present one nor has more zeros.
    """
    kept = unit.shape[0] * unit.shape[1] if whole.support is None else int(whole.support.count_nonzero())
    if whole.nbytes() >= _stored_nbytes(lm, unit) and kept >= _nonzero_count(unit):
        return None
    formats = _split_format(whole, unit)
    biases = _biases(problem, whole, unit)
    sizes = {site.name: format.nbytes() for site, format in zip(unit.sites, formats, strict=True)}
    for site, format, bias in zip(unit.sites, formats, biases, strict=True):
        lm.replace(site, format, bias)
    return sizes


def put_empty_format(lm: LanguageModel, unit: SolveGroup, method: Method) -> None:
    """Replace the layers of a unit in a model without weights, under the same condition as `replace_layers`.

    Args:
        lm: the model on the meta device, changed in place.
        unit: the layers to replace.
        method: the method with its size.
    """
    kept, every = _nonzero_count(unit), unit.shape[0] * unit.shape[1]
    whole = method.meta_format(unit.shape, kept if kept < every else None).to(lm.dtype)
    left = every if whole.support is None else whole.count
    if whole.nbytes() >= _stored_nbytes(lm, unit) and left >= kept:
        return
    for site, format in zip(unit.sites, _split_format(whole, unit), strict=True):
        lm.replace(site, format)


def _stored_nbytes(lm: LanguageModel, unit: SolveGroup) -> int:
    """Stored bytes of the unit's present layers."""
    return sum(lm.site_nbytes(site) for site in unit.sites)


def _nonzero_count(unit: SolveGroup) -> int:
    """Number of weights that no earlier step has pruned."""
    modules = [(site.module, site.shape) for site in unit.sites]
    return sum(
        module.count if isinstance(module, Format) and module.support is not None else shape[0] * shape[1]
        for module, shape in modules
    )


def _split_format(whole: Format, unit: SolveGroup) -> tuple[Format, ...]:
    if len(unit.sites) == 1:
        return (whole,)
    assert isinstance(whole, LowRank), "only methods that make an input factor are given several matrices"
    return split_rows(whole, unit.rows)


@torch.no_grad()
def _biases(problem: Problem, whole: Format, unit: SolveGroup) -> Sequence[Tensor | None]:
    # The factors are stored rounded but multiplied in float32, so the bias is computed from the same float32 product.
    moved = problem.bias(deepcopy(whole).float().dense())
    return [None] * len(unit.sites) if moved is None else moved.float().split(unit.rows)
