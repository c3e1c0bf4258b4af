"""What is known of one matrix, by kind of statistic, and of many sites over several shards."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from jaxtyping import Bool
from torch import Tensor

from laconic.calibrate.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class Known:
    """The statistics of one matrix, asked for by type: `known[Gram].matrix`.

    support: the mask that an earlier pruning step left, (out, in); solvers keep to it. None where nothing was pruned.
    """

    def __init__(self, statistics: Iterable[Statistic] = (), support: Bool[Tensor, "out in"] | None = None) -> None:
        self._by_type = {type(statistic): statistic for statistic in statistics}
        self.support = support

    def __getitem__(self, kind: type[S]) -> S:
        statistic = self._by_type[kind]
        assert isinstance(statistic, kind)
        return statistic

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._by_type.values())

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._by_type

    def __or__(self, other: "Known") -> "Known":
        """Both together; `other` wins where both know the same kind."""
        merged = {**self._by_type, **other._by_type}
        return Known(merged.values(), self.support if other.support is None else other.support)


def merge(into: Mapping[str, Known], other: Mapping[str, Known]) -> None:
    """Add what another shard collected of the same sites; a statistic that several sites share is added once."""
    done: set[int] = set()
    for name, known in into.items():
        for statistic in known:
            if id(statistic) not in done:
                done.add(id(statistic))
                statistic.merge(other[name][type(statistic)])
