"""Several methods at several sizes on one model: statistics are collected once, and each starts from a fresh copy."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

from laconic.allocate import Plan
from laconic.calibrate import Calibration, LayerStats, Statistic, collect_stats
from laconic.calibrate.corpus import Corpus
from laconic.compress import Allocation, Compress, Outcome
from laconic.evaluate import Reference, compare_to_reference, latency
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.report.costs import Point

TIMED_RUNS = 10
"""Of each model; its latency is their median."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method and how its budget is allocated.

    Args:
        name: what tables call it.
        method: without a size.
        allocate: the allocation.
    """

    name: str
    method: Method
    allocate: Allocation = "uniform"

    def step(self, keep: float) -> Compress:
        """The step that keeps a fraction of the bytes of the targeted matrices."""
        return Compress(method=self.method, keep=keep, allocate=self.allocate)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One candidate at one size: its point on the trade-off, and the plan."""

    candidate: Candidate
    point: Point
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Referee:
    """What every model is measured on.

    Args:
        original: the model that the others are compared with.
        corpus: the rows for fidelity.
        batch: rows of the batch that is timed.
        length: tokens of each of its rows.
    """

    original: LanguageModel
    corpus: Corpus
    batch: int = 8
    length: int = 128

    def point(self, lm: LanguageModel, name: str, keep: float, sizes: tuple[int, int]) -> Point:
        """The point of a model on the trade-off.

        Args:
            lm: the model.
            name: of its method.
            keep: the fraction of bytes that was asked for.
            sizes: bytes of the targeted matrices now and before.
        """
        like = compare_to_reference(lm, self._reference)
        nbytes, dense = sizes
        return Point(
            method=name,
            keep=keep,
            nbytes=nbytes,
            dense_nbytes=dense,
            file_bytes=lm.size()[1],
            kl=like.kl,
            agreement=like.top1_agreement,
            latency=latency(lm, self.batch, self.length, runs=TIMED_RUNS).median,
        )

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.original, self.corpus)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates for one model, with the statistics that they need.

    Args:
        referee: the original, and what all are measured on.
        candidates: the methods.
        known: statistics by site.
    """

    referee: Referee
    candidates: Sequence[Candidate]
    known: Mapping[str, LayerStats]

    @classmethod
    def of(cls, referee: Referee, candidates: Sequence[Candidate], data: Calibration) -> "Comparison":
        """Collect the statistics of all candidates in one pass."""
        steps = [candidate.step(keep=0.5) for candidate in candidates]
        needs = frozenset[type[Statistic]]().union(*(step.needs for step in steps))
        known = collect_stats(referee.original, data, needs, referee.original.sites())
        return cls(referee=referee, candidates=candidates, known=known)

    def original(self) -> Point:
        """The point of the original model."""
        lm = self.referee.original
        dense = sum(rows * columns for rows, columns in (site.shape for site in lm.sites())) * lm.dtype.itemsize
        return self.referee.point(lm, "original", 1.0, (dense, dense))

    def compressed(self, candidate: Candidate, keep: float) -> tuple[LanguageModel, Outcome]:
        """A copy of the original, compressed."""
        lm = replace(self.referee.original, model=deepcopy(self.referee.original.model))
        return lm, candidate.step(keep).solve(lm, self.known)

    def cells(self, keeps: Sequence[float], track: Track) -> list[Cell]:
        """Every candidate at every size."""
        pairs = [(candidate, keep) for candidate in self.candidates for keep in keeps]
        return [self._cell(candidate, keep) for candidate, keep in track(pairs, "Compressing and judging")]

    def _cell(self, candidate: Candidate, keep: float) -> Cell:
        lm, outcome = self.compressed(candidate, keep)
        point = self.referee.point(lm, candidate.name, keep, (outcome.nbytes, outcome.dense_nbytes))
        return Cell(candidate=candidate, point=point, plan=outcome.plan)
