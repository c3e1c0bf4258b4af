"""The base class of all results, which converts them to JSON values, text, HTML and a pandas DataFrame."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console

from laconic.report.tables import Table

if TYPE_CHECKING:
    import pandas

WIDTH = 100
"""The number of characters in a line of a printed result."""
LARGEST_TABLE = 20
"""The number of rows of a table that a notebook displays."""

Part = str | tuple[str, Table]
"""One line, or a table with its title, which may be empty."""


class Result(ABC):
    """A result of a function of laconic.

    It prints as a few lines, is displayed as a table in a notebook, and `to_frame()` converts it to a DataFrame.
    """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The values that the command line prints with `--json`."""

    def parts(self) -> Iterator[Part]:
        """The lines and tables that the command line prints, the most important ones first."""
        yield self._headline()
        yield from self._notes()

    @abstractmethod
    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of `to_frame()`, each by column."""

    def to_frame(self) -> "pandas.DataFrame":
        """The result as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame.from_records([dict(row) for row in self._rows()])

    @abstractmethod
    def _headline(self) -> str:
        """The result in one line."""

    @abstractmethod
    def _table(self) -> Table | None:
        """The table that a notebook displays."""

    def _notes(self) -> Sequence[str]:
        """Lines to read with the table."""
        return ()

    def __str__(self) -> str:
        out, table = StringIO(), self._table()
        out.write(f"{self._headline()}\n")
        if table is not None:
            Console(file=out, width=WIDTH, color_system=None).print(table.to_rich())
        out.writelines(f"{line}\n" for line in self._notes())
        return out.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._headline()}>"

    def _repr_html_(self) -> str:
        table = self._table()
        notes = "".join(f"<div>{escape(line)}</div>" for line in self._notes())
        shown = "" if table is None else _html(table)
        return f"<div><div>{escape(self._headline())}</div>{shown}{notes}</div>"


# Colours are those of the notebook, light or dark; lines are half transparent.
_RULE = "border-bottom:1px solid rgba(128,128,128,.4);padding:.2em .6em"


def _html(table: Table) -> str:
    """A table in HTML with its first `LARGEST_TABLE` rows."""
    sides = ["left" if column.is_text else "right" for column in table.columns]

    def row(tag: str, texts: Sequence[str]) -> str:
        cells = (_cell(tag, side, text) for side, text in zip(sides, texts, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    shown = table.shown()
    head = row("th", [column.heading for column in table.columns])
    body = "".join(row("td", texts) for texts in shown[:LARGEST_TABLE])
    more = f"<div>{len(shown) - LARGEST_TABLE} more rows</div>" if len(shown) > LARGEST_TABLE else ""
    return f'<table style="color:inherit"><thead>{head}</thead><tbody>{body}</tbody></table>{more}'


def _cell(tag: str, side: str, text: str) -> str:
    return f'<{tag} style="text-align:{side};{_RULE}">{escape(text)}</{tag}>'
