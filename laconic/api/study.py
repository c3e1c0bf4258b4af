"""`laconic.study` runs a grid of recipes over models, tasks and seeds, and writes its report."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any, Literal, overload

from laconic.api.arguments import check_kinds
from laconic.api.inputs import Document, local_device, local_folder, read_document
from laconic.api.results import Part, Result
from laconic.errors import Notice, UserError, must_be
from laconic.progress import Track, silent
from laconic.report.study import write_report
from laconic.report.study.groups import cell_name
from laconic.report.study.results import results_table
from laconic.report.tables import Column, Table
from laconic.store import check_output
from laconic.study import (
    FAILED,
    Cell,
    Ledger,
    MlflowLogger,
    Record,
    Summary,
    cells_of,
    check_cells,
    check_logging,
    estimate_seconds,
    make_executor,
    own_records,
    parse_study,
    run_study,
    save_study,
    title_of,
)

EXECUTORS = ("local", "ray")


@dataclass(frozen=True, repr=False, eq=False)
class StudyPlan(Result):
    """The cells of a study that a dry run lists.

    Args:
        cells: for each cell its key, its labels on the axes, its state, and the estimated seconds.

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
        """The number of cells to measure, and the estimated time."""
        left = [cell["seconds"] for cell in self.cells if cell["seconds"] is not None]
        minutes = sum(left) / 60
        return f"{len(left)} of {len(self.cells)} cells are to do, in about {minutes:.0f} min with one worker."

    def _table(self) -> Table:
        """The cells."""
        axes = list(self.cells[0]["axes"])
        columns = (*map(Column, axes), Column("state"), Column("about s", "{:.0f}"))
        rows = ((*map(_label, cell["axes"].values()), cell["state"], cell["seconds"]) for cell in self.cells)
        return Table(columns, tuple(rows))

    def parts(self) -> Iterator[Part]:
        """The cells, and the estimated time."""
        yield "", self._table()
        yield self._headline()


@dataclass(frozen=True, repr=False, eq=False)
class StudyResult(Result):
    """The records of all cells of a study, and a summary of its last run.

    Args:
        output: the folder or URL of the study.
        records: a record for each cell that is done or failed, from this run or an earlier one.
        failed: the records of cells that failed.
        page: the report; None if the study is at a URL.
        summary: all other results of this run.

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
            "statistics_collected": summary.statistics_collected,
            "moved_aside": [{"file": file.name, "reason": file.reason} for file in summary.moved],
            "invalid_files": [{"file": file.name, "reason": file.reason} for file in summary.invalid],
            "seconds": round(summary.seconds, 3),
            "seconds_within_cells": round(summary.cell_seconds, 3),
            "report": None if self.page is None else str(self.page),
        }

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each cell, as in the table of `laconic report`."""
        return results_table(self.records).rows

    def _headline(self) -> str:
        """The number of measured cells."""
        summary = self.summary
        return (
            f"Cells measured in {summary.seconds:.0f} s: {summary.measured}; finished before: {summary.found}; "
            f"passes that collected statistics: {summary.statistics_collected}."
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
        """Failed cells, and the path of the report."""
        failed = [f"Failed: {cell_name(record['axes'])}: {record['error']['sentence']}" for record in self.failed]
        remedy = ["`--retry-failed` measures these again."] if failed else []
        return [*failed, *remedy, f"The results are in {self.page or f'`laconic report {self.output}`'}."]


@overload
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: Literal[False] = False,
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyResult: ...
@overload
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: Literal[True],
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyPlan: ...
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyResult | StudyPlan:
    """Measure every cell of a study that has no record yet, and write its report.

    Args:
        study: a YAML file, the name of a study that comes with laconic (`laconic study --list`), or a mapping with the
            same content as such a file.
        output: folder or URL of the study. Cells with a record there are not measured again.
        executor: `local` or `ray`.
        workers: number of cells to measure in parallel; they share the CPU cores.
        address: address of the Ray cluster. None starts a local one.
        retry_failed: also measure failed cells again.
        dry_run: only list the cells, with estimated times.
        device: `cpu`, `cuda` or `cuda:1`.
        track: reports progress.
        changes: values that replace those of the study, by their position: `limit=100`, `**{"axes.keep": [0.5]}`.

    Returns:
        The records of all cells; for a dry run the list of cells.

    Raises:
        UserError: the study cannot be read, or a cell is impossible. This is checked before any cell is measured; a
            cell that fails later has a record of its error.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> axes = {"model": ["model"], "method": ["svd"], "keep": [0.5, 0.3]}
        >>> study({"axes": axes, "cost": True}, "studies/sizes", dry_run=True).to_frame()["keep"].tolist()
        [nan, 0.5, 0.3]
    """
    check_kinds(executor=executor, workers=workers, address=address, retry_failed=retry_failed, dry_run=dry_run)
    check_kinds(track=track)
    if executor not in EXECUTORS:
        raise must_be("executor", f"one of {', '.join(EXECUTORS)}", executor)
    if workers < 1:
        raise must_be("workers", "at least 1", workers)
    place = fsdecode(output)
    folder = local_folder("output", place)
    own = local_device(device)
    if address is not None and executor != "ray":
        raise UserError("address is for the executor ray; leave it out.")
    document = read_document(study, "study", changes)
    parsed = parse_study(document.text, document.path, document.overrides)
    cells = cells_of(parsed)
    if (parsed.save or parsed.prepare) and folder is None:
        raise must_be("output", "a local folder, because the study saves models", place)
    if folder is not None and not dry_run:
        check_output(folder, *{cell.recipe.model for cell in cells}, exist_ok=True)
    check_logging(parsed.mlflow, place)
    check_cells(cells)
    if dry_run:
        return StudyPlan(_planned(cells, place, retry_failed))
    ledger = Ledger(place)
    save_study(place, parsed.title, document.text, cells, document.overrides)
    uri = parsed.mlflow if isinstance(parsed.mlflow, str) else None
    logger = MlflowLogger(place, uri, parsed.title) if parsed.mlflow else None
    runner = make_executor(executor, folder, workers, address, own, track)
    summary = run_study(cells, ledger, runner, retry=retry_failed, logger=logger, track=track)
    if logger is not None and logger.missed:
        sentence = f"MLflow lacks {logger.missed} cells, which the next run of the study logs: {logger.reason}."
        warnings.warn(sentence, Notice, stacklevel=2)
    records = own_records(place)
    page = None if folder is None else write_report(records, folder, title_of(place)).page
    return StudyResult(place, records, summary.failed, page, summary)


def _planned(cells: Sequence[Cell], place: str, retry: bool) -> list[dict[str, Any]]:
    """Each cell with its state and its estimated seconds."""
    records: list[Record] = Ledger(place).all()[0] if Ledger.is_at(place) else []
    states = {record["key"]: record["state"] for record in records if not (retry and record["state"] == FAILED)}
    seconds = estimate_seconds([cell for cell in cells if cell.key not in states], records)
    return [
        {
            "key": cell.key,
            "axes": dict(cell.axes),
            "state": states.get(cell.key, "to do"),
            "seconds": None if cell.key not in seconds else round(seconds[cell.key], 1),
        }
        for cell in cells
    ]


def _label(value: Any) -> str | None:
    return None if value is None else str(value)
