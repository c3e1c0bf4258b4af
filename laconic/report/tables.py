"""One table, shown three ways: on the terminal, in Markdown, and (by the template) in HTML."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

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
        table = RichTable(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for column in self.columns:
            table.add_column(column.heading, justify="left" if column.is_text else "right", overflow="fold")
        for row in self.shown():
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For a README or a model card."""
        lines = [
            [column.heading for column in self.columns],
            ["---" if column.is_text else "---:" for column in self.columns],
            *([cell.replace("|", "\\|") for cell in row] for row in self.shown()),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
