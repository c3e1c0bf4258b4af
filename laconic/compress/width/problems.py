"""What the output projection of each attention and feed-forward is to come near, with fewer columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from laconic.calibrate import InputCovariance, LayerStats, Mean, Means, Problem
from laconic.model import Site
from laconic.model.prunable_group import CoupledGroups, PrunableGroup


def problems_of(family: CoupledGroups, known: Mapping[str, LayerStats], add_bias: bool) -> list[Problem]:
    """Of each member of `family`: the whole of its output projection, on what is `known` of its inputs."""
    return [_problem(inner, known.get(inner.writer.name, LayerStats()), add_bias) for inner in family]


def on_a_walk(
    families: Sequence[CoupledGroups], met: Iterable[list[tuple[Site, Problem]]], anchored: bool, add_bias: bool
) -> Iterator[tuple[CoupledGroups, Sequence[Problem]]]:
    """Each family, which is one attention or feed-forward, with its problem once those before it are narrow."""
    writers = {inner.writer.name: inner for (inner,) in families}
    for step in met:
        for site, problem in step:
            inner = writers[site.name]
            yield (inner,), (problem if anchored else _problem(inner, problem.known, add_bias),)


def _problem(inner: PrunableGroup, known: LayerStats, add_bias: bool) -> Problem:
    # Where its bias may move, the moment is taken around the mean, and the mean output is to be reached.
    site = inner.writer
    weight, bias = site.weight(), site.bias()
    if not (add_bias or bias is not None) or InputCovariance not in known:
        return Problem(weight=weight, known=known)
    gram, mean = known[InputCovariance], known[Mean].vector
    means = Means(mean, weight.double() @ mean + (0 if bias is None else bias.detach().double()))
    centred = InputCovariance.of(gram.matrix - torch.outer(mean, mean), gram.count)
    return Problem(weight=weight, known=known | LayerStats([centred]), means=means)
