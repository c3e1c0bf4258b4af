"""Measures of quality and cost in a study, and groups of cells that differ only in their seed.

A measure is a column of the results with its format and its better direction. A group has means over seeds, a name, and
its change against the original in words.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from laconic.evaluate.paired import Verdict, verdict
from laconic.report.study.results import DONE, MODEL, SEED, ResultRow, Results, measure_name, pass_name
from laconic.report.tables import MEGABYTE, Spread, Value

LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "loss", "nll", "brier_score", "error", "ter")
"""Metrics, or words in their names, for which lower is better."""
PERCENT_METRICS = ("accuracy", "acc", "f1", "precision", "recall", "p@", "exact_match", "agreement", "em")
"""Beginnings of the names of metrics that are shown in percent."""


@dataclass(frozen=True)
class Measure:
    """A measure of quality or cost: a column of the results, and how it is shown.

    Args:
        column: name of the column.
        name: the name that readers see.
        form: format string of the scaled value.
        unit: the unit of the scaled value; "" if it has none.
        scale: factor from the value in the column to the unit.
        higher_is_better: whether higher values are better.

    Example:
        >>> SIZE.to_text(12_500_000)
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
        """The name with the unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def to_text(self, value: float) -> str:
        """A value of the column as text, with the unit."""
        return self.form.format(value * self.scale) + (f" {self.unit}" if self.unit else "")


KL = Measure("kl", "KL to the original", "{:.4f}", "nats")
SIZE = Measure("file_bytes", "saved weights", "{:,.2f}", "MB", 1 / MEGABYTE)


def quality_measure(task: str, metric: str) -> Measure:
    """The measure of a metric of a task.

    Example:
        >>> quality_measure("glue/sst2", "accuracy").to_text(0.875)
        '87.5%'
        >>> quality_measure("perplexity:a.txt", "perplexity").higher_is_better
        False
    """
    # A metric of a subset has the name of the subset after its own.
    bare = metric.partition("/")[0].partition(",")[0]
    form = "{:.1%}" if bare.startswith(PERCENT_METRICS) else "{:.4g}" if _lower_is_better(bare) else "{:.3f}"
    return Measure(measure_name(task, metric), f"{task} {metric}", form, higher_is_better=not _lower_is_better(bare))


def _lower_is_better(metric: str) -> bool:
    return metric in LOWER_IS_BETTER or any(word in LOWER_IS_BETTER for word in metric.split("_"))


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


@dataclass(frozen=True)
class CellGroup:
    """Cells that differ only in their seed.

    Args:
        axes: values by column, without the seed.
        rows: rows of its cells, failed ones included.
    """

    axes: Mapping[str, Value]
    rows: tuple[ResultRow, ...]

    @cached_property
    def done(self) -> tuple[ResultRow, ...]:
        """The rows of the cells that did not fail."""
        return tuple(row for row in self.rows if row["state"] == DONE)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its cells."""
        return frozenset(str(row["key"]) for row in self.rows)

    @property
    def family(self) -> str:
        """The family of its methods, such as `low rank`."""
        return str(self.rows[0]["family"] or "other")

    @property
    def baseline(self) -> bool:
        """Whether it is an original, which was not compressed."""
        return bool(self.rows[0]["baseline"])

    def numbers(self, column: str) -> list[float]:
        """The numbers of its finished cells in a column."""
        return [float(value) for row in self.done if isinstance(value := row.get(column), (int, float))]

    def spread(self, column: str) -> Spread | None:
        """Mean and deviation of a column over its cells; None if no cell has a value."""
        numbers = self.numbers(column)
        return Spread.of(numbers) if numbers else None

    def mean(self, column: str) -> float | None:
        """The mean of a column over its cells; None if no cell has a value."""
        spread = self.spread(column)
        return spread and spread.mean


def group_cells(results: Results) -> list[CellGroup]:
    """The groups of a study: originals first, then in the order of the first cell of each."""
    axes = [column for name, column in results.axes.items() if name != SEED]
    members: dict[tuple[Value, ...], list[ResultRow]] = {}
    for row in results.rows:
        members.setdefault((row["baseline"], *(row[column] for column in axes)), []).append(row)
    groups = [CellGroup(dict(zip(axes, key[1:], strict=True)), tuple(rows)) for key, rows in members.items()]
    return sorted(groups, key=lambda group: not group.baseline)


SUBJECT_AXES = (MODEL, "task")
"""The axes that name the model and the task of a group, and not its compression."""
NO_STEP = ("then", "nothing")
METHOD_AXES = ("method", "recipe")


class GroupNames:
    """Names of the groups of one study, by those axes that have several values.

    Args:
        results: the table of the study.
    """

    def __init__(self, results: Results) -> None:
        self._axis_of = {column: name for name, column in results.axes.items()}
        self._numbers = [measure.column for measure in amount_measures(results)]
        axes = results.axes.items()
        self.subjects = [
            column
            for name, column in axes
            if name == MODEL or (name in SUBJECT_AXES and len(results.values(column)) > 1)
        ]
        self.groups = [column for name, column in axes if name == "targets"]
        compressed = [row for row in results.rows if not row["baseline"]]
        self._settings = [
            column
            for name, column in axes
            if name in METHOD_AXES
            or (
                name not in (*SUBJECT_AXES, SEED)
                and column not in self._numbers
                and len({row[column] for row in compressed}) > 1
            )
        ]

    def subject(self, group: CellGroup) -> str:
        """The model of a group, and its task if the study has several."""
        return ", ".join(str(group.axes[column]) for column in self.subjects if group.axes[column] is not None)

    def title(self, subject: str, quality: str) -> str:
        """The subject without the task, if the column `quality` names the task already."""
        return ", ".join(part for part in subject.split(", ") if not quality.startswith(f"{part} "))

    def compression(self, group: CellGroup, without: Sequence[str] = ()) -> str:
        """The method and other settings of a group in words, without the amount and without these columns."""
        parts = [self._axis_text(column, group.axes[column]) for column in self._settings if column not in without]
        return ", ".join(filter(None, parts)) or group.family

    def amount(self, group: CellGroup, without: str = "") -> str:
        """The amount of compression of a group in words: its values on the axes of numbers that vary."""
        values = [(column, group.axes[column]) for column in self._numbers if column != without]
        return ", ".join(f"{column} {_short(value)}" for column, value in values if value is not None)

    def first_amount(self, group: CellGroup) -> str:
        """The first axis of numbers that has a value for the group; empty if there is none."""
        return next((column for column in self._numbers if group.axes[column] is not None), "")

    def full_name(self, group: CellGroup) -> str:
        """The method, the other settings and the amount of a group in words."""
        return ", ".join(filter(None, (self.compression(group), self.amount(group))))

    def _axis_text(self, column: str, value: Value) -> str:
        if value is None or (self._axis_of[column], value) == NO_STEP:
            return ""
        return str(value) if self._axis_of[column] in (*METHOD_AXES, "targets") else f"{column} {_short(value)}"


def cell_name(axes: Mapping[str, Value]) -> str:
    """The name of a cell: its values on the axes, with the name of the axis where the value is unclear without it.

    Example:
        >>> cell_name({"model": "minilm", "method": "svd", "keep": 0.5})
        'minilm, svd, keep 0.5'
    """
    return ", ".join(
        str(value) if name in (*SUBJECT_AXES, *METHOD_AXES) else f"{name} {value}"
        for name, value in axes.items()
        if value is not None
    )


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_change(group: CellGroup, measures: Sequence[Measure]) -> str:
    """The change of a group against the original in words.

    Args:
        group: its cells.
        measures: the measures of quality.

    Returns:
        The verdict, by measure where they differ; empty if nothing was compared.
    """
    if group.baseline:
        return "the original"
    changes = {measure.name: text for measure in measures if (text := _describe_measure(group.done, measure))}
    if len(changes) > 1 and len(set(changes.values())) == 1:
        parts = [f"{next(iter(changes.values()))} (all {len(changes)} tasks)"]
    else:
        parts = [f"{name}: {text}" if len(changes) > 1 else text for name, text in changes.items()]
    failed = sum(row["state"] != DONE for row in group.rows)
    if failed:
        parts.append("failed" if len(group.rows) == 1 else f"{failed} of {len(group.rows)} cells failed")
    return ", ".join(parts)


def verdict_of(row: ResultRow, measure: Measure) -> Verdict | None:
    """The verdict on the change of a cell; None if it was not compared."""
    p, least = row.get(f"{measure.column} p"), row.get(f"{measure.column} least p")
    if not isinstance(p, (int, float)):
        return None
    return verdict(p, least if isinstance(least, (int, float)) else 0.0)


def is_gain(row: ResultRow, measure: Measure) -> bool:
    """Whether a cell is better than the original in a measure."""
    change = row.get(f"{measure.column} change")
    return isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better


def _describe_measure(rows: Sequence[ResultRow], measure: Measure) -> str:
    counts = Counter(verdict_of(row, measure) for row in rows)
    del counts[None]
    directions = {is_gain(row, measure) for row in rows if verdict_of(row, measure) is Verdict.CHANGE}
    change = "change" if len(directions) > 1 else "gain" if True in directions else "loss"
    kinds = [kind for kind in Verdict if counts[kind]]
    texts = [
        (change if kind is Verdict.CHANGE else kind.value)
        + (f" in {counts[kind]} of {counts.total()} seeds" if kind is not kinds[0] else "")
        for kind in kinds
    ]
    return "; ".join(texts)
