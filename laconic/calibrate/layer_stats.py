"""The statistics of a linear layer, and the problem that a method solves for it.

A problem is usually the layer's own weight with its statistics. Anchored calibration gives another matrix: the one that
brings the outputs back to those of the dense model from inputs with the errors of earlier layers
(`laconic.calibrate.anchor`). The least squares problem has the same form, so every method solves it unchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic import processes
from laconic.calibrate.statistics import GradientStatistic, Statistic

S = TypeVar("S", bound=Statistic)


class LayerStats:
    """The statistics of one linear layer, keyed by type.

    Args:
        statistics: at most one of each type.
        support: the mask of an earlier pruning step, (out, in), which solvers keep; None where nothing was pruned.

    Example:
        >>> import torch
        >>> from laconic.calibrate import InputCovariance
        >>> stats = LayerStats([InputCovariance.of(torch.eye(2), count=8)])
        >>> stats[InputCovariance].matrix.diagonal().tolist()
        [1.0, 1.0]
    """

    def __init__(self, statistics: Iterable[Statistic] = (), support: Bool[Tensor, "out in"] | None = None) -> None:
        self._by_type = {type(statistic): statistic for statistic in statistics}
        self.support = support
        self.solutions: dict[str, tuple[Tensor, ...]] = {}

    def once(self, name: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The result of `compute`, which is called only at the first call with this name.

        Args:
            name: must tell everything that the result depends on besides these statistics.
            compute: gives a tuple of tensors.
        """
        if name not in self.solutions:
            self.solutions[name] = compute()
        return self.solutions[name]

    def forget_results(self) -> None:
        """Drop the results of `once`; the statistics stay."""
        self.solutions.clear()

    def __getitem__(self, kind: type[S]) -> S:
        statistic = self._by_type[kind]
        assert isinstance(statistic, kind)
        return statistic

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._by_type.values())

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._by_type

    def __or__(self, other: "LayerStats") -> "LayerStats":
        """Both together; `other` wins where both know the same kind."""
        merged = {**self._by_type, **other._by_type}
        return LayerStats(merged.values(), self.support if other.support is None else other.support)


def stacked(parts: Sequence[LayerStats]) -> LayerStats:
    """The statistics of matrices that read one input, written one below the other, (Σ out, in)."""
    if len(parts) == 1:
        return parts[0]
    support = None if parts[0].support is None else torch.cat([_support(part) for part in parts])
    statistics = [
        type(first).stacked([part[type(first)] for part in parts]) if isinstance(first, GradientStatistic) else first
        for first in parts[0]
    ]
    return LayerStats(statistics, support)


def _support(stats: LayerStats) -> Bool[Tensor, "out in"]:
    assert stats.support is not None, "all parts were pruned, or none"
    return stats.support


def merge(into: Mapping[str, LayerStats], other: Mapping[str, LayerStats]) -> None:
    """Add the statistics that another shard collected of the same layers, in place; shared ones are added once."""
    for name, statistic in _each_once(into):
        statistic.merge(other[name][type(statistic)])


def gather(stats: Mapping[str, LayerStats]) -> None:
    """Add the statistics that the other processes collected of the same layers, in place."""
    if processes.count() == 1:
        return
    statistics = [statistic for _, statistic in _each_once(stats)]
    counts = processes.summed(torch.tensor([statistic.count for statistic in statistics]))
    for statistic, count in zip(statistics, counts.tolist(), strict=True):
        statistic.gather()
        statistic.count = count


def _each_once(stats: Mapping[str, LayerStats]) -> Iterator[tuple[str, Statistic]]:
    """Every statistic, in an order that is the same in all processes, with the first site that it is of."""
    done: set[int] = set()
    for name, of_site in stats.items():
        # Asked for as a set, whose order is another in every process.
        for statistic in sorted(of_site, key=lambda statistic: type(statistic).__name__):
            if id(statistic) not in done:
                done.add(id(statistic))
                yield name, statistic


class Means(NamedTuple):
    """Mean inputs and outputs of a layer.

    Args:
        x: E[x] of the inputs, (in,).
        y: E[y] of the outputs to reach, bias included, (out,).
    """

    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The problem that a method solves for one matrix.

    Args:
        weight: the matrix to approximate, (out, in).
        stats: its statistics.
        means: given if the bias may move to absorb the mean error; else None.

    Example:
        >>> import torch
        >>> means = Means(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        >>> problem = Problem(weight=torch.eye(2), stats=LayerStats(), means=means)
        >>> problem.bias(torch.zeros(2, 2)).tolist()
        [1.0, 1.0]
    """

    weight: Float[Tensor, "out in"]
    stats: LayerStats
    means: Means | None = None

    def bias(self, approximation: Float[Tensor, "out in"]) -> Float[Tensor, " out"] | None:
        """b̂ = E[y] − Ŵ E[x], which leaves no mean error; None where the layer's own bias stays."""
        return None if self.means is None else self.means.y - approximation.double() @ self.means.x


def stack(problems: Sequence[Problem]) -> Problem:
    """The problem of matrices that read one input, written one below the other."""
    if len(problems) == 1:
        return problems[0]
    means = [problem.means for problem in problems if problem.means is not None]
    return Problem(
        weight=torch.cat([problem.weight for problem in problems]),
        stats=stacked([problem.stats for problem in problems]),
        means=Means(means[0].x, torch.cat([mean.y for mean in means])) if len(means) == len(problems) else None,
    )
