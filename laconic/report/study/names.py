"""What a group of cells is called: by those axes on which the study has several values."""

from collections.abc import Mapping, Sequence

from laconic.report.study.groups import Group
from laconic.report.study.measures import amounts
from laconic.report.study.results_table import MODEL, SEED, Results
from laconic.report.tables import Value

SUBJECT = (MODEL, "task")
"""Axes that say what was compressed, and not how."""
NOTHING_MORE = ("then", "nothing")
HOW = ("method", "recipe")


class Names:
    """Of the groups of one study."""

    def __init__(self, results: Results) -> None:
        self._axis_of = {column: name for name, column in results.axes.items()}
        self._numbers = [measure.column for measure in amounts(results)]
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
        """The model, and the task where they differ."""
        return ", ".join(str(group.axes[column]) for column in self.subjects if group.axes[column] is not None)

    def title(self, subject: str, quality: str) -> str:
        """The subject without the task, where the column `quality` has that in its name."""
        return ", ".join(part for part in subject.split(", ") if not quality.startswith(f"{part} "))

    def way(self, group: Group, without: Sequence[str] = ()) -> str:
        """How it was compressed, without the amount; `without` these columns."""
        parts = [self._said(column, group.axes[column]) for column in self.varying if column not in without]
        return ", ".join(filter(None, parts)) or group.family

    def amount(self, group: Group, without: str = "") -> str:
        """How much, where that varies."""
        found = [(column, group.axes[column]) for column in self._numbers if column != without]
        return ", ".join(f"{column} {_short(value)}" for column, value in found if value is not None)

    def first_amount(self, group: Group) -> str:
        """The first axis along which numbers vary that means something for it; "" without one."""
        return next((column for column in self._numbers if group.axes[column] is not None), "")

    def whole(self, group: Group) -> str:
        """How it was compressed, and how much."""
        return ", ".join(filter(None, (self.way(group), self.amount(group))))

    def _varies(self, results: Results, column: str) -> bool:
        found = {row[column] for row in results.rows if not row["baseline"]}
        return len(found) > 1 or self._axis_of[column] in HOW

    def _said(self, column: str, value: Value) -> str:
        if value is None or (self._axis_of[column], value) == NOTHING_MORE:
            return ""
        return str(value) if self._axis_of[column] in (*HOW, "targets") else f"{column} {_short(value)}"


def called(axes: Mapping[str, Value]) -> str:
    """A cell by its place on the axes; what a value is of is said where the value does not tell."""
    return ", ".join(
        str(value) if name in (*SUBJECT, *HOW) else f"{name} {value}"
        for name, value in axes.items()
        if value is not None
    )


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
