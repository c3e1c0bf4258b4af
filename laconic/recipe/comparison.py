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
from laconic.report.evaluation import Point

TIMED_RUNS = 10
"""Timed forward passes for each model; the reported latency is their median."""


@dataclass(frozen=True, kw_only=True)
class ComparedMethod:
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
class ComparedModel:
    """The model of one method at one size: its measurements, and the method of every compressed matrix."""

    method: ComparedMethod
    point: Point
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Evaluator:
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
        fidelity = compare_to_reference(lm, self._reference)
        nbytes, dense = sizes
        return Point(
            method=name,
            keep=keep,
            nbytes=nbytes,
            dense_nbytes=dense,
            file_bytes=lm.size()[1],
            kl=fidelity.kl,
            agreement=fidelity.top1_agreement,
            latency=latency(lm, self.batch, self.length, runs=TIMED_RUNS).median,
        )

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.original, self.corpus)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods for one model, with the statistics that they need.

    Args:
        evaluator: the original model and the data for measurements.
        methods: the methods to compare.
        stats: the collected statistics of each linear layer, by its path.
    """

    evaluator: Evaluator
    methods: Sequence[ComparedMethod]
    stats: Mapping[str, LayerStats]

    @classmethod
    def of(cls, evaluator: Evaluator, methods: Sequence[ComparedMethod], data: Calibration) -> "Comparison":
        """Collect the statistics of all methods in one pass."""
        steps = [method.step(keep=0.5) for method in methods]
        needs = frozenset[type[Statistic]]().union(*(step.needs for step in steps))
        stats = collect_stats(evaluator.original, data, needs, evaluator.original.sites())
        return cls(evaluator=evaluator, methods=methods, stats=stats)

    def original(self) -> Point:
        """The measurements of the original model."""
        lm = self.evaluator.original
        dense = sum(rows * columns for rows, columns in (site.shape for site in lm.sites())) * lm.dtype.itemsize
        return self.evaluator.point(lm, "original", 1.0, (dense, dense))

    def compress(self, method: ComparedMethod, keep: float) -> tuple[LanguageModel, Outcome]:
        """Compress a copy of the original; `keep` is the fraction of bytes to keep."""
        lm = replace(self.evaluator.original, model=deepcopy(self.evaluator.original.model))
        return lm, method.step(keep).apply_with(lm, self.stats)

    def measure(self, keeps: Sequence[float], track: Track) -> list[ComparedModel]:
        """Measure every method at every size.

        Args:
            keeps: the sizes, as fractions of the bytes of the targeted matrices.
            track: reports progress.
        """
        pairs = [(method, keep) for method in self.methods for keep in keeps]
        return [self._measure(method, keep) for method, keep in track(pairs, "Compressing and measuring")]

    def _measure(self, method: ComparedMethod, keep: float) -> ComparedModel:
        lm, outcome = self.compress(method, keep)
        point = self.evaluator.point(lm, method.name, keep, (outcome.nbytes, outcome.dense_nbytes))
        return ComparedModel(method=method, point=point, plan=outcome.plan)
