"""Remove parts of an attention or feed-forward: the problem of its output projection, and its refit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from laconic.calibrate import InputCovariance, LayerStats, Mean, Means, Problem
from laconic.compress.width.importance import Price, chunk_size
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel, Site
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.model.width import keep_parts
from laconic.numerics.structured import damp_active, part_columns, refit_columns


def output_problems(family: CoupledGroups, stats: Mapping[str, LayerStats], add_bias: bool) -> list[Problem]:
    """The problem of the output projection of each coupled group: its matrix and the statistics of its inputs.

    Args:
        family: groups that lose the same parts.
        stats: statistics by layer name; layers without any get empty ones.
        add_bias: the projection may get a bias that it does not have.
    """
    return [_output_problem(inner, stats.get(inner.writer.name, LayerStats()), add_bias) for inner in family]


def sequential_problems(
    families: Sequence[CoupledGroups], met: Iterable[list[tuple[Site, Problem]]], anchored: bool, add_bias: bool
) -> Iterator[tuple[CoupledGroups, Sequence[Problem]]]:
    """Pairs of an attention or feed-forward and its problem, each once the layers before it are narrow."""
    writers = {inner.writer.name: inner for (inner,) in families}
    for step in met:
        for site, problem in step:
            inner = writers[site.name]
            yield (inner,), (problem if anchored else _output_problem(inner, problem.stats, add_bias),)


def _output_problem(inner: PrunableGroup, stats: LayerStats, add_bias: bool) -> Problem:
    # Where its bias may move, the moment is taken around the mean, and the mean output is to be reached.
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
    """Leave one attention or feed-forward with some of its parts.

    Args:
        lm: the model, changed in place.
        inner: the attention or feed-forward.
        problem: the problem of its output projection.
        parts: numbers of the parts that stay.
        refit: fit the columns that stay, and the bias, by least squares.
        centre: move the bias so that the mean output stays, if the bias may move.
    """
    columns = part_columns(parts, inner.size).to(problem.weight.device)
    weight = problem.weight[:, columns]
    if refit:
        # Rounded as they are stored, so that the bias makes up for that too.
        weight = refit_columns(problem.weight, damp_active(problem.stats[InputCovariance].matrix), columns).to(lm.dtype)
    bias = None
    if problem.means is not None and (refit or centre):
        bias = problem.means.y - weight.double() @ problem.means.x[columns]
    keep_parts(lm, inner, parts, weight, bias)


def check_several(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError where each of `families` has but one part, which stays."""
    if not any(family[0].count > 1 for family in families):
        raise UserError(
            f"Nothing of what is to be narrowed in this '{lm.model.config.model_type}' has several parts, and one must "
            "stay: heads that share their keys are one, and what is dropped has none; leave out the step."
        )


def check_enough(families: Sequence[CoupledGroups], keep: float, price: Price, multiple: int) -> None:
    """Raise UserError where what must stay in every layer costs more than `keep` of the whole."""
    whole = sum(price(family) * family[0].count for family in families)
    least = sum(price(family) * chunk_size(family, multiple) for family in families) / whole
    if keep < least:
        raise must_be("keep", f"at least {least:.4f}, which the fewest heads and channels that must stay are", keep)


def check_apart(lm: LanguageModel, families: Sequence[CoupledGroups]) -> None:
    """Raise UserError where several attentions must lose the same heads."""
    if any(len(family) > 1 for family in families):
        raise UserError(
            f"Attentions of '{lm.model.config.model_type}' share a position bias and so lose the same heads, which no "
            "walk from block to block can choose; leave out sequential and anchored."
        )


def check_finite(inners: Sequence[PrunableGroup]) -> None:
    """Raise UserError where a weight is no number."""
    for site in (site for inner in inners for site in inner.sites):
        if not site.weight().isfinite().all():
            raise UserError(f"The weights of '{site.name}' are not finite; take a checkpoint that is whole.")
