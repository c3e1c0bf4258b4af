"""Compare several methods at several sizes on one model.

Statistics are collected once. Each combination of a method and a size starts from a fresh copy of the model.
"""

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
"""Timed forward passes for each model; the reported latency is their median."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method and how its budget is allocated.

    Args:
        name: its name in tables.
        method: the method, without a rank or another parameter that sets its size.
        allocate: how the budget is distributed over the matrices.
    """

    name: str
    method: Method
    allocate: Allocation = "uniform"

    def step(self, keep: float) -> Compress:
        """The step that compresses the targeted matrices to the fraction `keep` of their bytes, in (0, 1]."""
        return Compress(method=self.method, keep=keep, allocate=self.allocate)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The result of one candidate at one size: the measurements, and the method of every compressed matrix."""

    candidate: Candidate
    point: Point
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Referee:
    """The original model and the data with which every compressed model is measured.

    Args:
        original: the uncompressed model; the outputs of the others are compared with its outputs.
        corpus: the texts on which outputs are compared.
        batch: rows of the batch whose forward pass is timed.
        length: tokens in each row of that batch.
    """

    original: LanguageModel
    corpus: Corpus
    batch: int = 8
    length: int = 128

    def point(self, lm: LanguageModel, name: str, keep: float, sizes: tuple[int, int]) -> Point:
        """Measure the size, the fidelity to the original and the latency of a model.

        Args:
            lm: the model.
            name: the name of its method.
            keep: the requested fraction of bytes.
            sizes: bytes of the targeted matrices after and before compression.
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
        referee: the original model and the data for measurements.
        candidates: the methods to compare.
        known: the collected statistics of each linear layer, by its path.
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
        """The measurements of the original model."""
        lm = self.referee.original
        dense = sum(rows * columns for rows, columns in (site.shape for site in lm.sites())) * lm.dtype.itemsize
        return self.referee.point(lm, "original", 1.0, (dense, dense))

    def compressed(self, candidate: Candidate, keep: float) -> tuple[LanguageModel, Outcome]:
        """Compress a copy of the original; `keep` is the fraction of bytes to keep."""
        lm = replace(self.referee.original, model=deepcopy(self.referee.original.model))
        return lm, candidate.step(keep).solve(lm, self.known)

    def cells(self, keeps: Sequence[float], track: Track) -> list[Cell]:
        """Measure every candidate at every size.

        Args:
            keeps: the sizes, as fractions of the bytes of the targeted matrices.
            track: reports progress.
        """
        pairs = [(candidate, keep) for candidate in self.candidates for keep in keeps]
        return [self._cell(candidate, keep) for candidate, keep in track(pairs, "Compressing and judging")]

    def _cell(self, candidate: Candidate, keep: float) -> Cell:
        lm, outcome = self.compressed(candidate, keep)
        point = self.referee.point(lm, candidate.name, keep, (outcome.nbytes, outcome.dense_nbytes))
        return Cell(candidate=candidate, point=point, plan=outcome.plan)
