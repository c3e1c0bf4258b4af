"""Measures of quality and cost in a study: their columns, which direction is better, and their formats."""

from dataclasses import dataclass

from laconic.report.costs import MEGABYTE
from laconic.report.study.results import SEED, Results, measure_name, pass_name

DOWNWARDS = ("perplexity", "bits_per_byte", "loss", "nll", "brier_score", "error", "ter")
"""Metrics, or words in their names, for which lower is better."""
SHARES = ("accuracy", "acc", "f1", "p@", "exact_match", "agreement", "em")
"""Beginnings of the names of metrics that are shown in percent."""


@dataclass(frozen=True)
class Measure:
    """A measure of quality or cost: a column of the results, and how it is shown.

    Args:
        column: name of the column.
        name: shown to readers.
        form: format string of the scaled value.
        unit: the unit of the scaled value; "" if it has none.
        scale: factor from the value in the column to the unit.
        higher_is_better: whether higher values are better.

    Example:
        >>> SIZE.written(12_500_000)
        '12.50 MB'
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


def quality_measure(task: str, metric: str) -> Measure:
    """The measure of a metric of a task.

    Example:
        >>> quality_measure("glue/sst2", "accuracy").written(0.875)
        '87.5%'
        >>> quality_measure("perplexity:a.txt", "perplexity").higher_is_better
        False
    """
    # A metric of a subset has the name of the subset after its own.
    bare = metric.partition("/")[0].partition(",")[0]
    form = "{:.1%}" if bare.startswith(SHARES) else "{:.4g}" if _lower_is_better(bare) else "{:.3f}"
    return Measure(measure_name(task, metric), f"{task} {metric}", form, higher_is_better=not _lower_is_better(bare))


def _lower_is_better(metric: str) -> bool:
    return metric in DOWNWARDS or any(word in DOWNWARDS for word in metric.split("_"))


def quality_measures(results: Results) -> list[Measure]:
    """Measures of quality: the first metric of each task, and the KL where it was measured."""
    first: dict[str, str] = {}
    for task, metric in results.measures:
        first.setdefault(task, metric)
    measures = [quality_measure(task, metric) for task, metric in first.items()]
    return [*measures, KL] if results.values(KL.column) else measures


def time_measures(results: Results) -> list[Measure]:
    """Measures of time: every forward pass that was timed."""
    return [
        Measure(pass_name(batch, length), f"time of {batch} × {length} tokens", "{:,.1f}", "ms", 1e3)
        for batch, length in results.passes
    ]


def amount_measures(results: Results) -> list[Measure]:
    """Axes of numbers with several values, such as keep, sparsity or bits, as measures of cost."""
    columns = [column for name, column in results.axes.items() if name != SEED]
    return [
        Measure(column, column, "{:g}")
        for column in columns
        if results.kind(column) in (int, float) and len(results.values(column)) > 1
    ]
