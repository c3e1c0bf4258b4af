"""A table that can be shown on the terminal, in Markdown, and by a template in HTML."""

from dataclasses import dataclass
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from laconic.markdown import plain

UNBROKEN = 19
"""Texts of up to so many characters are not broken on the terminal."""

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: shown above the values.
        form: format string of a value; `{}` makes a column of texts, which are aligned left, others right.

    Example:
        >>> Column("MB", "{:.1f}").show(41.24)
        '41.2'
    """

    heading: str
    form: str = "{}"

    @property
    def is_text(self) -> bool:
        return self.form == "{}"

    def show(self, value: Value) -> str:
        """The value as text; a dash for None."""
        return "–" if value is None else self.form.format(value)


@dataclass(frozen=True)
class Table:
    """A table of values.

    Args:
        columns: headings and formats.
        rows: one value for each column; None for what was not measured.

    Example:
        >>> print(Table((Column("method"), Column("KL", "{:.2f}")), (("svd", 0.128),)).to_markdown())
        | method | KL |
        | --- | ---: |
        | svd | 0.13 |
        <BLANKLINE>
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]

    def shown(self) -> list[list[str]]:
        """Every cell as text."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_rich(self, title: str | None = None) -> RichTable:
        """The table for the terminal.

        Args:
            title: shown above it.
        """
        table = RichTable(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
        shown = self.shown()
        for index, column in enumerate(self.columns):
            longest = max((len(row[index]) for row in shown), default=0)
            # On a narrow terminal the names in front and long texts break; numbers do not, and headings only between
            # words. What breaks is folded: nothing is ever cut off.
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
