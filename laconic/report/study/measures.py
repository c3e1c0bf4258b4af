"""What quality and cost mean in a study: which columns they are, which way is better, and how each is written."""

from dataclasses import dataclass

from laconic.report.points import MEGABYTE
from laconic.report.study.costs import pass_name
from laconic.report.study.results_table import SEED, Results, measure_name

DOWNWARDS = ("perplexity", "bits_per_byte", "loss", "nll", "brier_score", "error", "ter")
"""Metrics, or words in the names of metrics, of which less is better."""
SHARES = ("accuracy", "acc", "f1", "p@", "exact_match", "agreement", "em")
"""With which names of metrics begin that are written in percent."""


@dataclass(frozen=True)
class Measure:
    """A column of the results.

    name:    as readers call it; `unit` where it has one, and `scale` what its values are multiplied with for that.
    form:    how its scaled value is written.
    """

    column: str
    name: str
    form: str
    unit: str = ""
    scale: float = 1.0
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def written(self, value: float) -> str:
        return self.form.format(value * self.scale) + (f" {self.unit}" if self.unit else "")


KL = Measure("kl", "KL to the original", "{:.4f}", "nats")
SIZE = Measure("file_bytes", "saved weights", "{:,.2f}", "MB", 1 / MEGABYTE)


def quality(task: str, metric: str) -> Measure:
    """That of a task."""
    # What a parted metric is of stands behind its name.
    bare = metric.partition("/")[0].partition(",")[0]
    form = "{:.1%}" if bare.startswith(SHARES) else "{:.4g}" if _falls(bare) else "{:.3f}"
    return Measure(measure_name(task, metric), f"{task} {metric}", form, higher_is_better=not _falls(bare))


def _falls(metric: str) -> bool:
    return metric in DOWNWARDS or any(word in DOWNWARDS for word in metric.split("_"))


def qualities(results: Results) -> list[Measure]:
    """The first metric of each task, and the KL where it was measured."""
    first: dict[str, str] = {}
    for task, metric in results.measures:
        first.setdefault(task, metric)
    found = [quality(task, metric) for task, metric in first.items()]
    return [*found, KL] if results.values(KL.column) else found


def times(results: Results) -> list[Measure]:
    """Forward passes that were timed."""
    return [
        Measure(pass_name(batch, length), f"time of {batch} × {length} tokens", "{:,.1f}", "ms", 1e3)
        for batch, length in results.passes
    ]


def amounts(results: Results) -> list[Measure]:
    """Axes along which numbers vary, such as keep, sparsity or bits."""
    columns = [column for name, column in results.axes.items() if name != SEED]
    return [
        Measure(column, column, "{:g}")
        for column in columns
        if results.kind(column) in (int, float) and len(results.values(column)) > 1
    ]
