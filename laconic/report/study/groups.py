"""Group the cells that differ only in their seed: means over seeds, names of groups, and their changes in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

from laconic.evaluate.paired import Verdict, verdict
from laconic.report.study.measures import Measure, amount_measures
from laconic.report.study.results import DONE, MODEL, SEED, Results, Row
from laconic.report.tables import Value


@dataclass(frozen=True)
class Spread:
    """Mean and spread over the seeds of a group; formats as `mean ± deviation`.

    Args:
        mean: over the cells.
        deviation: sample standard deviation; None for one cell.
        count: number of cells.

    Example:
        >>> f"{Spread.of([0.5, 0.7]):.2f}"
        '0.60 ± 0.14'
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __mul__(self, scale: float) -> "Spread":
        return Spread(self.mean * scale, None if self.deviation is None else self.deviation * scale, self.count)

    def __format__(self, form: str) -> str:
        mean = format(self.mean, form)
        # Without a deviation the value does not depend on the seed.
        return f"{mean} ± {format(self.deviation, form.replace('+', ''))}" if self.deviation else mean


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone.

    Args:
        axes: values by column, without the seed.
        rows: rows of its cells, failed ones included.
    """

    axes: Mapping[str, Value]
    rows: tuple[Row, ...]

    @cached_property
    def done(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row["state"] == DONE)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its cells."""
        return frozenset(str(row["key"]) for row in self.rows)

    @property
    def family(self) -> str:
        return str(self.rows[0]["family"] or "other")

    @property
    def baseline(self) -> bool:
        return bool(self.rows[0]["baseline"])

    def numbers(self, column: str) -> list[float]:
        """The numbers of its finished cells in a column."""
        return [float(value) for row in self.done if isinstance(value := row.get(column), (int, float))]

    def spread(self, column: str) -> Spread | None:
        """Mean and deviation of a column over its cells; None if no cell has a value."""
        numbers = self.numbers(column)
        return Spread.of(numbers) if numbers else None

    def mean(self, column: str) -> float | None:
        found = self.spread(column)
        return found and found.mean


def group_cells(results: Results) -> list[Group]:
    """The groups of a study: originals first, then in the order of the first cell of each."""
    axes = [column for name, column in results.axes.items() if name != SEED]
    found: dict[tuple[Value, ...], list[Row]] = {}
    for row in results.rows:
        found.setdefault((row["baseline"], *(row[column] for column in axes)), []).append(row)
    groups = [Group(dict(zip(axes, key[1:], strict=True)), tuple(rows)) for key, rows in found.items()]
    return sorted(groups, key=lambda group: not group.baseline)


SUBJECT = (MODEL, "task")
"""The axes that name the model and the task of a group, and not its compression."""
NOTHING_MORE = ("then", "nothing")
HOW = ("method", "recipe")


class Names:
    """Names of the groups of one study, by those axes that have several values.

    Args:
        results: the table of the study.
    """

    def __init__(self, results: Results) -> None:
        self._axis_of = {column: name for name, column in results.axes.items()}
        self._numbers = [measure.column for measure in amount_measures(results)]
        columns = list(results.axes.values())
        self.subjects = [
            column
            for column in columns
            if self._axis_of[column] in SUBJECT and (self._axis_of[column] == MODEL or len(results.values(column)) > 1)
        ]
        self.texts = [
            column
            for column in columns
            if self._axis_of[column] not in (*SUBJECT, SEED) and column not in self._numbers
        ]
        self.groups = [column for column in columns if self._axis_of[column] == "targets"]
        self.varying = [column for column in self.texts if self._varies(results, column)]

    def subject(self, group: Group) -> str:
        """The model, and the task if the study has several."""
        return ", ".join(str(group.axes[column]) for column in self.subjects if group.axes[column] is not None)

    def title(self, subject: str, quality: str) -> str:
        """The subject without the task, if the column `quality` names the task already."""
        return ", ".join(part for part in subject.split(", ") if not quality.startswith(f"{part} "))

    def compression(self, group: Group, without: Sequence[str] = ()) -> str:
        """How the group was compressed, without the amount and without these columns."""
        parts = [self._said(column, group.axes[column]) for column in self.varying if column not in without]
        return ", ".join(filter(None, parts)) or group.family

    def amount(self, group: Group, without: str = "") -> str:
        """How much the group was compressed, by those axes of numbers that vary."""
        found = [(column, group.axes[column]) for column in self._numbers if column != without]
        return ", ".join(f"{column} {_short(value)}" for column, value in found if value is not None)

    def first_amount(self, group: Group) -> str:
        """The first axis of numbers that has a value for the group; empty if there is none."""
        return next((column for column in self._numbers if group.axes[column] is not None), "")

    def full_name(self, group: Group) -> str:
        """How the group was compressed, and how much."""
        return ", ".join(filter(None, (self.compression(group), self.amount(group))))

    def _varies(self, results: Results, column: str) -> bool:
        found = {row[column] for row in results.rows if not row["baseline"]}
        return len(found) > 1 or self._axis_of[column] in HOW

    def _said(self, column: str, value: Value) -> str:
        if value is None or (self._axis_of[column], value) == NOTHING_MORE:
            return ""
        return str(value) if self._axis_of[column] in (*HOW, "targets") else f"{column} {_short(value)}"


def cell_name(axes: Mapping[str, Value]) -> str:
    """The name of a cell: its values on the axes, with the name of the axis where the value alone is unclear.

    Example:
        >>> cell_name({"model": "minilm", "method": "svd", "keep": 0.5})
        'minilm, svd, keep 0.5'
    """
    return ", ".join(
        str(value) if name in (*SUBJECT, *HOW) else f"{name} {value}"
        for name, value in axes.items()
        if value is not None
    )


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_change(group: Group, measures: Sequence[Measure]) -> str:
    """The change of a group against the original in words.

    Args:
        group: its cells.
        measures: the measures of quality.

    Returns:
        The verdict, by measure where they differ; empty if nothing was compared.
    """
    if group.baseline:
        return "the original"
    found = [(measure, _describe_measure(group.done, measure)) for measure in measures]
    compared = [(measure, words) for measure, words in found if words]
    different = {words for _, words in compared}
    if len(different) == 1:
        parts = [f"{next(iter(different))} (all {len(compared)} tasks)"] if len(compared) > 1 else list(different)
    else:
        parts = [f"{measure.name}: {words}" for measure, words in compared]
    failed = sum(row["state"] != DONE for row in group.rows)
    if failed:
        parts.append("failed" if len(group.rows) == 1 else f"{failed} of {len(group.rows)} cells failed")
    return ", ".join(parts)


def verdict_of(row: Row, measure: Measure) -> Verdict | None:
    """The verdict on the change of a cell; None if it was not compared."""
    p, least = row.get(f"{measure.column} p"), row.get(f"{measure.column} least p")
    if not isinstance(p, (int, float)):
        return None
    return verdict(p, least if isinstance(least, (int, float)) else 0.0)


def _describe_measure(rows: Sequence[Row], measure: Measure) -> str:
    verdicts = [(row, found) for row in rows if (found := verdict_of(row, measure)) is not None]
    counts = {kind: sum(found is kind for _, found in verdicts) for kind in Verdict}
    directions = {_direction(row, measure) for row, found in verdicts if found is Verdict.CHANGE}
    words = {**{kind: kind.value for kind in Verdict}, Verdict.CHANGE: "change"}
    if len(directions) == 1:
        words[Verdict.CHANGE] = directions.pop()
    present = [kind for kind in Verdict if counts[kind]]
    others = (f"{words[kind]} in {counts[kind]} of {len(verdicts)} seeds" for kind in present[1:])
    return "; ".join([words[present[0]], *others]) if present else ""


def _direction(row: Row, measure: Measure) -> str:
    change = row[f"{measure.column} change"]
    better = isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better
    return "gain" if better else "loss"
