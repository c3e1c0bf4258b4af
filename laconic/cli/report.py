"""`laconic report`: a page, figures and tables of the results of a study."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.api.inputs import local_folder
from laconic.cli.options import JsonOption, new_folder
from laconic.cli.terminal import show, silence_libraries
from laconic.errors import UserError
from laconic.files import expand_user


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
        typer.Option(metavar="SQL", help="Print what this query selects from the table `results`, and write nothing."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write report.html, figures, results.csv, results.parquet and results.md of a study."""
    place = local_folder("DIR", folder)
    target = place if output is None else expand_user(output)
    if target is None and query is None:
        raise UserError("--output is missing: of a study at a URL the report is written to a folder of this machine.")
    silence_libraries()
    from laconic.api.study import own_records
    from laconic.report.study import query as select
    from laconic.report.study import write_report
    from laconic.store import check_output
    from laconic.study import Ledger, title_of

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
