"""One table, shown three ways: on the terminal, in Markdown, and (by the template) in HTML."""

from dataclasses import dataclass
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from laconic.markdown import plain

UNBROKEN = 19
"""Characters up to which a text stays on one line of the terminal."""

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A heading, and how its values are written; text is left-aligned, numbers right."""

    heading: str
    form: str = "{}"

    @property
    def is_text(self) -> bool:
        return self.form == "{}"

    def show(self, value: Value) -> str:
        """The value as text; a dash for what was not measured."""
        return "–" if value is None else self.form.format(value)


@dataclass(frozen=True)
class Table:
    """Values in rows, one for each column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]

    def shown(self) -> list[list[str]]:
        """Every cell as text."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_rich(self, title: str | None = None) -> RichTable:
        """For the terminal."""
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
        """For a README or a model card; names of models and the like are shown as they are."""
        lines = [
            [plain(column.heading) for column in self.columns],
            ["---" if column.is_text else "---:" for column in self.columns],
            *([plain(cell) for cell in row] for row in self.shown()),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
