"""`laconic study`: a grid of recipes over models, tasks and seeds, which goes on where it was stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from laconic.cli.options import DeviceOption, JsonOption, own_device
from laconic.cli.terminal import progress, remark, show
from laconic.errors import UserError, must_be

if TYPE_CHECKING:
    from laconic.report.tables import Table
    from laconic.study import Cell, Executor, Ledger, Record, Summary


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study; see the folder recipes/studies.")],
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
    json: JsonOption = False,
) -> None:
    """Run every cell of a study that is not done yet, and write the report."""
    from laconic.study import Ledger, cells_of, check_cells, keep_study, read_study, run_study

    device = own_device(device)
    if address is not None and executor != "ray":
        raise UserError("--address is for --executor ray; leave it out.")
    what = read_study(file, overrides or ())
    cells = cells_of(what)
    if (what.save or what.prepare) and "://" in output:
        raise must_be("--output", "a folder of this machine, because the study keeps models", output)
    check_cells(cells)
    if dry_run:
        listed = _listed(cells, output)
        show({"cells": listed}, json, _plan(listed).to_rich(), _in_all(listed))
        return
    ledger = Ledger(output)
    keep_study(output, what.title, file.read_text(), overrides or ())
    with progress() as track:
        runs = _executor(executor, output, workers, address, device, track)
        summary = run_study(cells, ledger, runs, retry=retry_failed, track=track)
    page = None if "://" in output else _reported(output, ledger)
    for strange in summary.strange:
        remark(f"'{strange.name}' in {output} was left alone: {strange.reason}.")
    show({**_told(summary, output), "report": page}, json, *_sentences(summary, page or f"`laconic report {output}`"))


def _reported(output: str, ledger: "Ledger") -> str:
    """The page of all records in the folder."""
    from laconic.report.study import write_report
    from laconic.study import title_of

    return str(write_report(ledger.all()[0], Path(output), title_of(output)).page)


def _executor(kind: str, output: str, workers: int, address: str | None, device: str, track: Any) -> "Executor":
    from laconic.study.executors import InProcess, Processes

    place = None if "://" in output else Path(output).absolute()
    if kind == "ray":
        from laconic.study.executors.over_ray import OverRay, connected

        connected(address)
        return OverRay(place, workers, address, device=device)
    return InProcess(place, device, track) if workers == 1 else Processes(place, workers, device)


def _listed(cells: "Sequence[Cell]", output: str) -> list[dict[str, Any]]:
    """Each cell with its state and about how many seconds it takes."""
    from laconic.study import Ledger
    from laconic.study.estimate import seconds_of

    records: list[Record] = Ledger(output).all()[0] if Ledger.is_at(output) else []
    states = {record["key"]: record["state"] for record in records}
    seconds = seconds_of([cell for cell in cells if cell.key not in states], records)
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
        "strange": [{"file": strange.name, "reason": strange.reason} for strange in summary.strange],
        "seconds": round(summary.seconds, 3),
        "seconds_within_cells": round(summary.within, 3),
    }


def _sentences(summary: "Summary", page: str) -> list[str]:
    said = [
        f"{summary.measured} cells were measured in {summary.seconds:.0f} s, {summary.found} were there already; "
        f"statistics were collected {summary.surveys} times."
    ]
    for record in summary.failed:
        axes = ", ".join(f"{name} {label}" for name, label in record["axes"].items() if label is not None)
        said.append(f"Failed: {axes}: {record['error']['sentence']}")
    if summary.failed:
        said.append("`--retry-failed` does these again.")
    return [*said, f"What came out is in {page}."]
