"""Remove parts of an attention or feed-forward, and refit its output projection."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from laconic.calibrate import InputCovariance, LayerStats, Mean, Means, Problem
from laconic.compress.width.budget import Price, chunk_size
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel, Site
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.model.width import keep_parts
from laconic.numerics.moments import check_finite
from laconic.numerics.structured import damp_active, part_columns, refit_columns


def output_problems(family: CoupledGroups, stats: Mapping[str, LayerStats], add_bias: bool) -> list[Problem]:
    """Build the problem of the output projection of each coupled group.

    Args:
        family: groups that lose the same parts.
        stats: statistics by layer name; layers without any get empty ones.
        add_bias: give a bias to projections that have none.
    """
    return [_output_problem(inner, stats.get(inner.writer.name, LayerStats()), add_bias) for inner in family]


def sequential_problems(
    families: Sequence[CoupledGroups], met: Iterable[list[tuple[Site, Problem]]], anchored: bool, add_bias: bool
) -> Iterator[tuple[CoupledGroups, Sequence[Problem]]]:
    """Yield pairs of an attention or feed-forward and its problem, in forward order.

    Args:
        families: single groups, not coupled with others.
        met: the steps of `sequential_calibrate` for their output projections.
        anchored: the calibration is anchored, so its problems are used as they are.
        add_bias: give a bias to projections that have none.
    """
    writers = {inner.writer.name: inner for (inner,) in families}
    for step in met:
        for site, problem in step:
            inner = writers[site.name]
            yield (inner,), (problem if anchored else _output_problem(inner, problem.stats, add_bias),)


def _output_problem(inner: PrunableGroup, stats: LayerStats, add_bias: bool) -> Problem:
    # If the bias may be adjusted, the covariance is centred, and the mean output is kept.
    site = inner.writer
    weight, bias = site.weight(), site.bias()
    if not (add_bias or bias is not None) or InputCovariance not in stats:
        return Problem(weight=weight, stats=stats)
    gram, mean = stats[InputCovariance], stats[Mean].vector
    means = Means(mean, weight.double() @ mean + (0 if bias is None else bias.detach().double()))
    centred = InputCovariance.of(gram.matrix - torch.outer(mean, mean), gram.count)
    return Problem(weight=weight, stats=stats | LayerStats([centred]), means=means)


def remove_parts(
    lm: LanguageModel, inner: PrunableGroup, problem: Problem, parts: Sequence[int], *, refit: bool, centre: bool
) -> None:
    """Remove all but some parts of an attention or feed-forward.

    Args:
        lm: the model, changed in place.
        inner: the attention or feed-forward.
        problem: the problem of its output projection.
        parts: numbers of the parts that stay.
        refit: fit the columns that stay, and the bias, by least squares.
        centre: without `refit`, adjust the bias so that the mean output stays, if the problem has means.
    """
    columns = part_columns(parts, inner.size).to(problem.weight.device)
    weight = problem.weight[:, columns]
    if refit:
        # Round to the stored dtype first, so that the bias also compensates for the rounding.
        weight = refit_columns(problem.weight, damp_active(problem.stats[InputCovariance].matrix), columns).to(lm.dtype)
    bias = None
    if problem.means is not None and (refit or centre):
        bias = problem.means.y - weight.double() @ problem.means.x[columns]
    keep_parts(lm, inner, parts, weight, bias)


def check_several(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError if every one of `families` has a single part, which cannot be removed."""
    if not any(family[0].count > 1 for family in families):
        raise UserError(
            f"Nothing of what is to be narrowed in this '{lm.model.config.model_type}' has several parts, and one must "
            "stay: heads that share their keys are one, and what is dropped has none; leave out the step."
        )


def check_enough(families: Sequence[CoupledGroups], keep: float, price: Price, multiple: int) -> None:
    """Raise UserError if the parts that must stay in every layer cost more than `keep` of the total price.

    Args:
        families: coupled groups of all layers.
        keep: fraction of the price of all parts.
        price: the price of one part.
        multiple: channels that are removed at once.
    """
    whole = sum(price(family) * family[0].count for family in families)
    least = sum(price(family) * chunk_size(family, multiple) for family in families) / whole
    if keep < least:
        raise must_be("keep", f"at least {least:.4f}, which the fewest heads and channels that must stay are", keep)


def check_apart(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError if several attentions must lose the same heads, which sequential calibration cannot handle."""
    if any(len(family) > 1 for family in families):
        raise UserError(
            f"Attentions of '{lm.model.config.model_type}' share a position bias and so lose the same heads, which no "
            "walk from block to block can choose; leave out sequential and anchored."
        )


def check_weights(inners: Sequence[PrunableGroup]) -> None:
    """Raise UserError if a weight is NaN or infinite."""
    for site in (site for inner in inners for site in inner.sites):
        check_finite(site.weight(), f"The weights of '{site.name}' are not finite; take a checkpoint that is whole.")
