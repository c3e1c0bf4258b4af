"""What `laconic.study` returns: the records of all cells, or the list of cells of a dry run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.api.results import Part, Result
from laconic.report.study.groups import cell_name
from laconic.report.study.results import results_table
from laconic.report.tables import Column, Table
from laconic.study import Record, Summary


@dataclass(frozen=True, repr=False, eq=False)
class StudyPlan(Result):
    """The cells of a study that a dry run lists.

    Args:
        cells: of each cell its key, its place on the axes, its state, and about how many seconds it takes.

    Example:
        >>> from laconic import study
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> axes = {"model": ["model"], "method": ["svd"], "keep": [0.5]}
        >>> plan = study({"axes": axes, "cost": True}, "studies/sizes", dry_run=True)
        >>> [cell["state"] for cell in plan.cells]
        ['to do', 'to do']
    """

    cells: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic study --dry-run --json` prints."""
        return {"cells": list(self.cells)}

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each cell."""
        return [
            {"key": cell["key"], **cell["axes"], "state": cell["state"], "seconds": cell["seconds"]}
            for cell in self.cells
        ]

    def _headline(self) -> str:
        """How many cells are to do, and about how long that takes."""
        left = [cell["seconds"] for cell in self.cells if cell["seconds"] is not None]
        minutes = sum(left) / 60
        return f"{len(left)} of {len(self.cells)} cells are to do, in about {minutes:.0f} min with one worker."

    def _table(self) -> Table:
        """The cells."""
        axes = list(self.cells[0]["axes"])
        columns = (*map(Column, axes), Column("state"), Column("about s", "{:.0f}"))
        rows = ((*map(_label, cell["axes"].values()), cell["state"], cell["seconds"]) for cell in self.cells)
        return Table(columns, tuple(rows))

    def _notes(self) -> Sequence[str]:
        """Nothing more."""
        return ()

    def parts(self) -> Iterator[Part]:
        """The cells, and how long they take."""
        yield "", self._table()
        yield self._headline()


@dataclass(frozen=True, repr=False, eq=False)
class StudyResult(Result):
    """What a run of a study did, and the records of all its cells.

    Args:
        output: the folder or URL of the study.
        records: a record for each cell that is done or failed, from this run or an earlier one.
        failed: the records of cells that failed.
        page: the report; None if the study lies at a URL.
        summary: everything else that is known of this run.

    Example:
        >>> from laconic import study
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> axes = {"model": ["model"], "method": ["svd"], "keep": [0.5]}
        >>> result = study({"axes": axes, "cost": True}, "studies/measured")
        >>> len(result.records), result.failed, result.page.name
        (2, (), 'report.html')
    """

    output: str
    records: Sequence[Record]
    failed: Sequence[Record]
    page: Path | None
    summary: Summary

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic study --json` prints."""
        summary = self.summary
        return {
            "output": self.output,
            "measured": summary.measured,
            "found": summary.found,
            "failed": [{"key": record["key"], "axes": record["axes"], **record["error"]} for record in self.failed],
            "surveys": summary.surveys,
            "aside": [{"file": file.name, "reason": file.reason} for file in summary.moved],
            "strange": [{"file": file.name, "reason": file.reason} for file in summary.invalid],
            "seconds": round(summary.seconds, 3),
            "seconds_within_cells": round(summary.cell_seconds, 3),
            "report": None if self.page is None else str(self.page),
        }

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each cell, with what it measured; the table of `laconic report`."""
        return results_table(self.records).rows

    def _headline(self) -> str:
        """How many cells were measured."""
        summary = self.summary
        return (
            f"Cells measured in {summary.seconds:.0f} s: {summary.measured}; there already: {summary.found}. "
            f"Times that statistics were collected: {summary.surveys}."
        )

    def _table(self) -> Table | None:
        """The cells with their sizes and their first figure of quality."""
        found = results_table(self.records)
        measured = [" ".join(measure) for measure in found.measures[:1]]
        axes = [found.axes[name] for name in found.axes]
        numbers = {"kept": "{:.1%}", "kl": "{:.4g}", **dict.fromkeys(measured, "{:.4f}")}
        shown = {name: form for name, form in numbers.items() if any(row.get(name) is not None for row in found.rows)}
        columns = (*map(Column, axes), Column("state"), *(Column(name, form) for name, form in shown.items()))
        rows = (
            (*(_label(row[axis]) for axis in axes), row["state"], *(row[name] for name in shown)) for row in found.rows
        )
        return Table(columns, tuple(rows)) if found.rows else None

    def _notes(self) -> Sequence[str]:
        """What failed, and where the report is."""
        failed = [f"Failed: {cell_name(record['axes'])}: {record['error']['sentence']}" for record in self.failed]
        remedy = ["`--retry-failed` does these again."] if failed else []
        return [*failed, *remedy, f"What came out is in {self.page or f'`laconic report {self.output}`'}."]

    def parts(self) -> Iterator[Part]:
        """What was done, what failed, and where the report is."""
        yield self._headline()
        yield from self._notes()


def _label(value: Any) -> str | None:
    return None if value is None else str(value)
