"""The statistics of a linear layer, and the problem that a method solves for it.

Usually a problem is to approximate the layer's own weight under its statistics. Anchored calibration replaces the
weight by the matrix that best maps the inputs of the partly compressed model to the outputs of the dense model
(`laconic.calibrate.anchor`). The least squares problem has the same form, so every method solves both.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic import processes
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError

S = TypeVar("S", bound=Statistic)


class LayerStats:
    """The statistics of one linear layer, keyed by type.

    Args:
        statistics: at most one of each type.
        support: mask of an earlier pruning step, (out, in), True at weights that may be nonzero; None if nothing was
            pruned. Solvers keep the zeros.
        token_count: for the matrix of an expert, the number of tokens that the router sent to it; None for other
            matrices.

    Example:
        >>> import torch
        >>> from laconic.calibrate import InputCovariance
        >>> stats = LayerStats([InputCovariance.from_moment(torch.eye(2), count=8)])
        >>> stats[InputCovariance].matrix.diagonal().tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        statistics: Iterable[Statistic] = (),
        support: Bool[Tensor, "out in"] | None = None,
        token_count: int | None = None,
    ) -> None:
        self._by_type = {type(statistic): statistic for statistic in statistics}
        self.support, self.token_count = support, token_count
        self.solutions: dict[str, tuple[Tensor, ...]] = {}

    def get_or_compute(self, name: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the result of `compute`, cached under `name`.

        Args:
            name: cache key; it must contain everything that the result depends on besides these statistics.
            compute: returns a tuple of tensors; called only if nothing is cached under `name`.
        """
        if name not in self.solutions:
            self.solutions[name] = compute()
        return self.solutions[name]

    def clear_solutions(self) -> None:
        """Clear the cache of `get_or_compute`; the statistics stay."""
        self.solutions.clear()

    def __getitem__(self, kind: type[S]) -> S:
        """Return the statistic of one type.

        Raises:
            UserError: it was not collected.
        """
        statistic = self._by_type.get(kind)
        if statistic is None:
            raise UserError(
                f"The statistic '{kind.__name__}' was not collected for this layer; the method that reads it must list "
                "it in `needs`."
            )
        assert isinstance(statistic, kind)
        return statistic

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._by_type.values())

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._by_type

    def __or__(self, other: "LayerStats") -> "LayerStats":
        """Return the union of both; for a type that both have, the statistic of `other` is taken."""
        merged = {**self._by_type, **other._by_type}
        support = self.support if other.support is None else other.support
        return LayerStats(
            merged.values(), support, self.token_count if other.token_count is None else other.token_count
        )


def concatenate_stats(parts: Sequence[LayerStats]) -> LayerStats:
    """Return the statistics of several matrices with the same input, concatenated along their rows to (Σ out, in)."""
    if len(parts) == 1:
        return parts[0]
    supports = [part.support for part in parts if part.support is not None]
    assert len(supports) in (0, len(parts)), "all parts were pruned, or none"
    support = torch.cat(supports) if supports else None
    statistics: list[Statistic] = []
    for kind in map(type, parts[0]):
        # Input statistics are the same for all parts.
        own = [part[kind] for part in parts]
        statistics.append(kind.concatenate(own) if issubclass(kind, GradientStatistic) else own[0])
    return LayerStats(statistics, support)


def merge(into: Mapping[str, LayerStats], other: Mapping[str, LayerStats]) -> None:
    """Add the statistics of the same layers from another shard.

    Args:
        into: statistics by layer name, changed in place. Layers may share a statistic object; it is added once.
        other: statistics of the other shard, by layer name.
    """
    for name, statistic in _each_once(into):
        statistic.merge(other[name][type(statistic)])
    for name, stats in into.items():
        if stats.token_count is not None:
            stats.token_count += other[name].token_count or 0


def gather(stats: Mapping[str, LayerStats]) -> None:
    """Sum the statistics over all processes, in place; all processes must call this with the same layers."""
    if processes.world_size() == 1:
        return
    statistics = [statistic for _, statistic in _each_once(stats)]
    counts = processes.all_reduce_sum(torch.tensor([statistic.count for statistic in statistics], dtype=torch.float64))
    for statistic, count in zip(statistics, counts.tolist(), strict=True):
        statistic.gather()
        statistic.count = count


def _each_once(stats: Mapping[str, LayerStats]) -> Iterator[tuple[str, Statistic]]:
    """Yield each statistic once, with the first layer that has it, in an order that all processes share."""
    done: set[int] = set()
    for name, layer_stats in stats.items():
        # The types come from a set, whose iteration order differs between processes.
        for statistic in sorted(layer_stats, key=lambda statistic: type(statistic).__name__):
            if id(statistic) not in done:
                done.add(id(statistic))
                yield name, statistic


class Means(NamedTuple):
    """Mean inputs and outputs of a layer.

    Args:
        x: E[x] of the inputs, (in,).
        y: E[y] of the outputs to approximate, bias included, (out,).
    """

    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The problem that a method solves for one matrix.

    Args:
        weight: the matrix to approximate, (out, in).
        stats: its statistics.
        means: mean input and output, given if the bias may be adjusted to remove the mean error; else None.

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
        """Return the bias b̂ = E[y] − Ŵ E[x], which removes the mean error; None if the bias is not adjusted.

        Args:
            approximation: Ŵ, (out, in).
        """
        return None if self.means is None else self.means.y - approximation.double() @ self.means.x


def concatenate_problems(problems: Sequence[Problem]) -> Problem:
    """Return the problem of several matrices with the same input, concatenated along their rows to (Σ out, in)."""
    if len(problems) == 1:
        return problems[0]
    means = [problem.means for problem in problems if problem.means is not None]
    return Problem(
        weight=torch.cat([problem.weight for problem in problems]),
        stats=concatenate_stats([problem.stats for problem in problems]),
        means=Means(means[0].x, torch.cat([mean.y for mean in means])) if len(means) == len(problems) else None,
    )
