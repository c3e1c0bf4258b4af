"""A table that can be shown on the terminal, in Markdown, and by a template in HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import fmean, stdev
from textwrap import fill
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from laconic.markdown import plain

MEGABYTE = 1e6
UNBROKEN = 19
"""The largest number of characters of a text that is not wrapped on the terminal."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Spread:
    """Mean and spread of repeated measurements; formats as `mean ± deviation`.

    Args:
        mean: the mean of the values.
        deviation: sample standard deviation; None for one value.
        count: number of values.

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
        # Without a deviation the value does not depend on the repetition.
        return f"{mean} ± {format(self.deviation, form.replace('+', ''))}" if self.deviation else mean


Value = str | int | float | None
TableValue = Value | Spread


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: the text above the values.
        form: format string of a scaled value; `{}` makes a column of texts, which are aligned left, others right.
        scale: factor from a value to the number that is shown.
        name: the name of the column in the data; empty if it has none.

    Example:
        >>> Column("MB", "{:.1f}", 1e-6).show(41_240_000)
        '41.2'
    """

    heading: str
    form: str = "{}"
    scale: float = 1.0
    name: str = ""

    @property
    def is_text(self) -> bool:
        return self.form == "{}"

    def show(self, value: TableValue) -> str:
        """The value as text; a dash for None."""
        if value is None:
            return "–"
        return self.form.format(value if self.scale == 1 or isinstance(value, str) else value * self.scale)


@dataclass(frozen=True)
class Table:
    """A table of values.

    Args:
        columns: headings and formats.
        rows: one value for each column; None for a value that was not measured.

    Example:
        >>> print(Table((Column("method"), Column("KL", "{:.2f}")), (("svd", 0.128),)).to_markdown())
        | method | KL |
        | --- | ---: |
        | svd | 0.13 |
        <BLANKLINE>
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[TableValue, ...], ...]

    @classmethod
    def of(cls, items: Iterable[Item], *columns: tuple[Column, Callable[[Item], TableValue]]) -> "Table":
        """Make a table with a row for each item.

        Args:
            items: the items, one for each row.
            columns: each with the function that gives its value for an item.

        Example:
            >>> Table.of([3, 4], (Column("n"), lambda n: n), (Column("n²"), lambda n: n * n)).rows
            ((3, 9), (4, 16))
        """
        rows = tuple(tuple(value(item) for _, value in columns) for item in items)
        return cls(tuple(column for column, _ in columns), rows)

    def without_empty_columns(self) -> "Table":
        """The table without columns that have no value in any row."""
        filled = [any(row[index] is not None for row in self.rows) for index in range(len(self.columns))]
        return Table(tuple(compress(self.columns, filled)), tuple(tuple(compress(row, filled)) for row in self.rows))

    def shown(self) -> list[list[str]]:
        """Every cell as text."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_rich(self, title: str | None = None) -> RichTable:
        """The table for the terminal.

        Args:
            title: the title above the table.
        """
        table = RichTable(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
        shown = self.shown()
        for index, column in enumerate(self.columns):
            longest = max((len(line) for row in shown for line in row[index].splitlines()), default=0)
            # On a narrow terminal, the first column and long texts are wrapped, headings only between words, and
            # numbers never. No text is cut off.
            heading = fill(column.heading, max(longest, *map(len, column.heading.split())))
            table.add_column(
                heading,
                justify="left" if column.is_text else "right",
                no_wrap=index > 0 and longest <= UNBROKEN,
                overflow="fold",
            )
        for row in shown:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """The table in Markdown; characters that mean something in Markdown are escaped."""
        lines = [
            [plain(column.heading) for column in self.columns],
            ["---" if column.is_text else "---:" for column in self.columns],
            *([plain(cell) for cell in row] for row in self.shown()),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
