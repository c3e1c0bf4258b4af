"""Write the report of a study (page, tables and figures), and query its results by SQL with DuckDB.

Files are written atomically. Figures of an earlier report that no longer exist are removed. A list of the written files
with their hashes is stored beside them, so that figures which a user added or changed are kept.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ArrowException, parquet

from laconic.errors import UserError, install, must_be, reason_of
from laconic.files import expand_user, replacing, system_reason
from laconic.markdown import plain
from laconic.report.plots import png, standalone_svg
from laconic.report.study.charts import charts
from laconic.report.study.page import Picture, mean_table, study_page
from laconic.report.study.results import Results, results_table, sort_records
from laconic.report.study.scatter import chart_svg, draw_chart
from laconic.report.tables import Column, Table, Value

TYPES = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}


def write_file(path: Path, content: str | bytes) -> None:
    """Write or replace a file atomically, and create its folder.

    Args:
        path: the path of the file.
        content: text is written in UTF-8.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, flush=True) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"The report's file '{path}' cannot be written: {system_reason(error)}; name another folder."
        ) from error


def as_csv(results: Results) -> str:
    """The results as CSV: one line for each cell, empty where nothing was measured, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(results.columns)
    for row in results.rows:
        writer.writerow(["" if row[name] is None else _to_text(row[name]) for name in results.columns])
    return text.getvalue()


def as_arrow(results: Results) -> pyarrow.Table:
    """The results as an Arrow table; a column with values of several types is text."""
    columns = {}
    for name in results.columns:
        kind = results.kind(name)
        values = [row[name] for row in results.rows]
        if kind is str:
            values = [None if value is None else _to_text(value) for value in values]
        columns[name] = pyarrow.array(values, TYPES[kind])
    return pyarrow.table(columns)


def _to_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


WRITTEN = ".written.json"


def write_figures(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write figures, and remove those that an earlier call wrote and this one does not.

    Args:
        folder: the folder of the figures.
        contents: the content of each file, by its name.

    Raises:
        UserError: a file cannot be written.
    """
    earlier, current = _read_written(folder), {name: _hash(content) for name, content in contents.items()}
    # The list is written first, so that a later report knows all files even if this process is killed.
    write_file(folder / WRITTEN, json.dumps({**earlier, **current}, indent=1))
    for name, content in contents.items():
        write_file(folder / name, content)
    for name in earlier.keys() - current.keys():
        path = folder / name
        if path.is_file() and _hash(path.read_bytes()) == earlier[name]:
            path.unlink(missing_ok=True)
    write_file(folder / WRITTEN, json.dumps(current, indent=1))


def _read_written(folder: Path) -> dict[str, str]:
    """Names and hashes of the files that an earlier call wrote; names that lead out of the folder are left out."""
    try:
        hashes = json.loads((folder / WRITTEN).read_bytes())
    except (OSError, ValueError):
        return {}
    entries = hashes.items() if isinstance(hashes, dict) else ()
    return {name: str(digest) for name, digest in entries if Path(name).name == name}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


PAGE, CSV, MARKDOWN, FIGURES = "report.html", "results.csv", "results.md", "figures"


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report.

    Args:
        page: the HTML page.
        csv: the results.
        parquet: the results.
        markdown: a table of means.
        figures: paths without their ending; each is a PNG and an SVG file.
    """

    page: Path
    csv: Path
    parquet: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(
    records: Sequence[Mapping[str, Any]], folder: Path, title: str, *, study: Path | str | None = None
) -> ReportPaths:
    """Write `report.html`, `results.csv`, `.parquet` and `.md`, and `figures/`, each file whole or not at all.

    Args:
        records: one for each cell, from the ledger.
        folder: the folder to write to; files of an earlier report are replaced, and its figures removed.
        title: heading of the page.
        study: folder or URL of saved models; None for `folder`.

    Raises:
        UserError: there are no records, or the folder cannot be written to.
    """
    if not records:
        raise UserError(f"There is nothing to report in '{folder}': no cell of the study is finished; run it first.")
    records = sort_records(records)
    results = results_table(records)
    study_charts = charts(results)
    pictures: list[Picture] = []
    files: dict[str, bytes] = {}
    for chart in study_charts:
        figure = draw_chart(chart)
        files |= {f"{chart.stem}.png": png(figure), f"{chart.stem}.svg": standalone_svg(figure).encode()}
        pictures.append(Picture(chart.kind, chart_svg(chart, figure), chart.caption, chart.stem))
    write_figures(folder / FIGURES, files)
    write_file(folder / CSV, as_csv(results))
    buffer = io.BytesIO()
    parquet.write_table(as_arrow(results), buffer)
    write_file(folder / PARQUET, buffer.getvalue())
    write_file(folder / MARKDOWN, f"# {plain(title)}\n\n{mean_table(results, study_charts).to_markdown()}")
    write_file(
        folder / PAGE, study_page(records, results, study_charts, pictures, title, models=_link_prefix(folder, study))
    )
    stems = tuple(folder / FIGURES / chart.stem for chart in study_charts)
    return ReportPaths(folder / PAGE, folder / CSV, folder / PARQUET, folder / MARKDOWN, stems)


def _link_prefix(folder: Path, study: Path | str | None) -> str:
    """The prefix of the path of a model in a link: the path from the page to the study."""
    if study is None:
        return ""
    if "://" in str(study):
        return f"{str(study).rstrip('/')}/"
    path = os.path.relpath(expand_user(study).absolute(), folder.absolute())
    return "" if path == "." else f"{Path(path).as_posix()}/"


PARQUET = "results.parquet"
TABLE = "results"
LIBRARY = "duckdb"


def query(source: Sequence[Mapping[str, Any]] | Path | str, sql: str) -> Table:
    """Query the results of a study by SQL.

    Args:
        source: records of a study, or the folder of its report.
        sql: one statement about the table `results`, whose columns are those of results.csv.

    Raises:
        UserError: DuckDB is not installed, there is no report in the folder, or the SQL is wrong, is not one statement,
            or gives two columns one name.
    """
    if find_spec(LIBRARY) is None:
        raise UserError(f"Queries of results need duckdb, not installed here: {install('study')}.")
    duckdb = import_module(LIBRARY)
    results = _read_results(Path(source)) if isinstance(source, (str, Path)) else as_arrow(results_table(source))
    # A query reads only the results, and no files or URLs.
    with duckdb.connect(":memory:", config={"enable_external_access": False}) as connection:
        try:
            connection.register(TABLE, results)
            # DuckDB would return only the result of the last statement.
            if len(connection.extract_statements(sql)) != 1:
                raise must_be("The query", f"one statement, like SELECT * FROM {TABLE}", sql)
            answer = connection.execute(sql)
            names = [column[0] for column in answer.description or ()]
            rows = answer.fetchall()
        except duckdb.Error as error:
            raise UserError(f"The query cannot be answered: {reason_of(error)}.") from error
    if duplicates := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"The query gives two columns the name '{duplicates[0]}'; name one otherwise, by AS.")
    columns = tuple(_column(name, [row[index] for row in rows]) for index, name in enumerate(names))
    cells = (
        (value if value is None or isinstance(value, (str, int, float)) else str(value) for value in row)
        for row in rows
    )
    return Table(columns, tuple(map(tuple, cells)))


def _read_results(folder: Path) -> Any:
    path = expand_user(folder) / PARQUET
    try:
        return parquet.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no {PARQUET} in '{folder}'; write the report of the study first.") from error
    except (OSError, ArrowException) as error:
        raise UserError(f"The results '{path}' cannot be read: {reason_of(error)}.") from error


def _column(name: str, values: Sequence[object]) -> Column:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return Column(name, "{:d}")
    return Column(name, "{:.6g}" if kinds and kinds <= {int, float} else "{}")
