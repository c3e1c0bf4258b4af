"""`laconic study` runs a grid of recipes; `laconic report` writes a page, figures and tables of its results."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from laconic.api.inputs import check_device, local_folder, read_document
from laconic.cli.options import DeviceOption, JsonOption, ListOfStudies, new_folder
from laconic.cli.terminal import progress_bars, show, show_result, silence_libraries
from laconic.errors import UserError
from laconic.files import expand_user


def study(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a name from --list, such as quick.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder or URL of the study. Cells with a record there are not measured again.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…", help="Replace values of the study, such as limit=100 or 'axes.keep=[0.5]'."
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Run the cells on this machine or on a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of cells to measure in parallel; they share the CPU cores.")
    ] = 1,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster. By default a local one is started.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also measure failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells, with estimated times.")] = False,
    device: DeviceOption = "cpu",
    list_names: ListOfStudies = False,
    json: JsonOption = False,
) -> None:
    """Measure every cell of a study that has no record yet, and write the report."""
    local_folder("--output", output)
    check_device(device)
    if address is not None and executor != "ray":
        raise UserError("--address is for --executor ray; leave it out.")
    # Read before imports, which take seconds, and only once: a pipe cannot be read again.
    document = read_document(study, "study", overrides=overrides or ())
    silence_libraries()
    from laconic.api.study import StudyResult
    from laconic.api.study import study as run_study

    with progress_bars() as track:
        result = run_study(
            document, output, executor=executor, workers=workers, address=address, retry_failed=retry_failed,
            dry_run=dry_run, device=device, track=track,
        )  # fmt: skip
    show_result(result, json)
    if isinstance(result, StudyResult) and result.failed:
        # A script that runs a study must see the failure; status 2 is for mistakes in the command.
        raise typer.Exit(1)


def report(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of a study, or its URL.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", parser=new_folder, help="The folder to write to. The default is DIR."
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Print the result of this query on the table `results`, and write no report."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the report of a study: report.html, figures, results.csv, results.parquet and results.md."""
    place = local_folder("DIR", folder)
    target = place if output is None else expand_user(output)
    if target is None and query is None:
        raise UserError("--output is missing: name a local folder for the report of a study at a URL.")
    silence_libraries()
    from laconic.report.study import query as select
    from laconic.report.study import write_report
    from laconic.store import check_output
    from laconic.study import Ledger, own_records, title_of

    if not Ledger.is_at(folder):
        raise UserError(f"There is no study in '{folder}': it has no folder 'cells'; run `laconic study` first.")
    if target is not None and query is None:
        check_output(target, exist_ok=True)
    records = own_records(folder)
    if query is not None:
        table = select(records, query)
        headings = [column.heading for column in table.columns]
        show({"rows": [dict(zip(headings, row, strict=True)) for row in table.rows]}, json, table.to_rich())
        return
    assert target is not None, "checked above"
    written = write_report(records, target, title_of(folder), study=folder if place is None else str(place))
    files = [str(path) for path in (written.page, written.csv, written.parquet, written.markdown)]
    show({"records": len(records), "files": files}, json, f"The report of {len(records)} cells is in {written.page}.")
