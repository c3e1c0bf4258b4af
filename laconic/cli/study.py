"""`laconic study`: a grid of recipes over models, tasks and seeds, which goes on where it was stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from laconic.cli.options import DeviceOption, JsonOption, own_device
from laconic.cli.shipped import ListOfStudies
from laconic.cli.studies import folder_of, own_records
from laconic.cli.terminal import progress, remark, show, silence_libraries
from laconic.errors import UserError, must_be
from laconic.shipped import located
from laconic.yaml_loader import text_of

if TYPE_CHECKING:
    from laconic.report.tables import Table
    from laconic.study import Cell, Executor, MlflowLogger, Record, Study, Summary


def study(
    given: Annotated[
        str, typer.Argument(metavar="STUDY", help="A YAML file, or the name of one of --list, like quick.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", help="The folder of the study, or a URL; what is there stays."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Like limit=100 or axes.keep=[0.5].")
    ] = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="What runs the cells.")] = "local",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Cells side by side; the cores are shared out.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; without it a local one is started.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also do cells that failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and about how long they take.")] = False,
    device: DeviceOption = "cpu",
    list_names: ListOfStudies = False,
    json: JsonOption = False,
) -> None:
    """Run every cell of a study that is not done yet, and write the report."""
    folder = folder_of("--output", output)
    device = own_device(device)
    if address is not None and executor != "ray":
        raise UserError("--address is for --executor ray; leave it out.")
    file = located(given, "study")
    # Read once: what another program pipes in is there once.
    text = text_of(file, "study")
    silence_libraries()
    from laconic.report.study import write_report
    from laconic.store import check_output
    from laconic.study import (
        Ledger,
        cells_of,
        check_cells,
        check_logging,
        parse_study,
        run_study,
        save_study,
        title_of,
    )

    what = parse_study(text, file, overrides or ())
    cells = cells_of(what)
    if (what.save or what.prepare) and folder is None:
        raise must_be("--output", "a folder of this machine, because the study keeps models", output)
    if folder is not None and not dry_run:
        check_output(folder, *{cell.recipe.model for cell in cells}, exist_ok=True)
    check_logging(what.mlflow, output)
    check_cells(cells)
    if dry_run:
        listed = _listed(cells, output, retry_failed)
        show({"cells": listed}, json, _plan(listed).to_rich(), _in_all(listed))
        return
    ledger = Ledger(output)
    save_study(output, what.title, text, cells, overrides or ())
    with progress() as track:
        runs = _executor(executor, folder, workers, address, device, track)
        logger = _mlflow_logger(what, output)
        summary = run_study(cells, ledger, runs, retry=retry_failed, logger=logger, track=track)
    if logger is not None and logger.missed:
        remark(f"MLflow lacks {logger.missed} cells, which the next run of the study logs: {logger.reason}.")
    records = own_records(output)
    page = None if folder is None else str(write_report(records, folder, title_of(output)).page)
    show({**_told(summary, output), "report": page}, json, *_sentences(summary, page or f"`laconic report {output}`"))
    if summary.failed:
        # What waits for a study has to know, and it was no mistake of the command's.
        raise typer.Exit(1)


def _mlflow_logger(what: "Study", output: str) -> "MlflowLogger | None":
    from laconic.study import MlflowLogger

    uri = what.mlflow if isinstance(what.mlflow, str) else None
    return MlflowLogger(output, uri, what.title) if what.mlflow else None


def _executor(kind: str, place: Path | None, workers: int, address: str | None, device: str, track: Any) -> "Executor":
    from laconic.study.executors import InProcess, Processes

    if kind == "ray":
        from laconic.study.ray_executor import RayExecutor, connect

        connect(address)
        # Ray hides the GPUs from workers that have not asked for one.
        return RayExecutor(place, workers, address, gpus=float(device.startswith("cuda")), device=device)
    return InProcess(place, device, track) if workers == 1 else Processes(place, workers, device)


def _listed(cells: "Sequence[Cell]", output: str, retry: bool) -> list[dict[str, Any]]:
    """Each cell with its state and about how many seconds it takes."""
    from laconic.study import FAILED, Ledger, estimate_seconds

    records: list[Record] = Ledger(output).all()[0] if Ledger.is_at(output) else []
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


def _plan(listed: Sequence[Mapping[str, Any]]) -> "Table":
    from laconic.report.tables import Column, Table

    axes = list(listed[0]["axes"])
    columns = (*(Column(axis) for axis in axes), Column("state"), Column("about s", "{:.0f}"))
    rows = tuple(
        (*(None if label is None else str(label) for label in line["axes"].values()), line["state"], line["seconds"])
        for line in listed
    )
    return Table(columns, rows)


def _in_all(listed: Sequence[Mapping[str, Any]]) -> str:
    left = [line["seconds"] for line in listed if line["seconds"] is not None]
    return f"{len(left)} of {len(listed)} cells are to do, in about {sum(left) / 60:.0f} min with one worker."


def _told(summary: "Summary", output: str) -> dict[str, Any]:
    return {
        "output": output,
        "measured": summary.measured,
        "found": summary.found,
        "failed": [{"key": record["key"], "axes": record["axes"], **record["error"]} for record in summary.failed],
        "surveys": summary.surveys,
        "aside": [{"file": file.name, "reason": file.reason} for file in summary.moved],
        "strange": [{"file": file.name, "reason": file.reason} for file in summary.invalid],
        "seconds": round(summary.seconds, 3),
        "seconds_within_cells": round(summary.cell_seconds, 3),
    }


def _sentences(summary: "Summary", page: str) -> list[str]:
    from laconic.report.study.groups import cell_name

    said = [
        f"Cells measured in {summary.seconds:.0f} s: {summary.measured}; there already: {summary.found}. "
        f"Times that statistics were collected: {summary.surveys}."
    ]
    for record in summary.failed:
        said.append(f"Failed: {cell_name(record['axes'])}: {record['error']['sentence']}")
    if summary.failed:
        said.append("`--retry-failed` does these again.")
    return [*said, f"What came out is in {page}."]
