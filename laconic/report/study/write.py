"""The whole report of a study, written to a folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.errors import UserError
from laconic.markdown import plain
from laconic.paths import expanded
from laconic.report.curves import png
from laconic.report.plots import standalone_svg
from laconic.report.study.charts import charts
from laconic.report.study.figures import put_figures
from laconic.report.study.files import as_csv, as_parquet, put
from laconic.report.study.page import Picture, page
from laconic.report.study.results_table import ordered, results_table
from laconic.report.study.scatter import draw, picture
from laconic.report.study.sql import PARQUET
from laconic.report.study.tables import means

PAGE, CSV, MARKDOWN, FIGURES = "report.html", "results.csv", "results.md", "figures"


@dataclass(frozen=True)
class Written:
    """Where the parts of a report are; `figures` are stems, each of a PNG and an SVG."""

    page: Path
    csv: Path
    parquet: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(
    records: Sequence[Mapping[str, Any]], folder: Path, title: str, *, study: Path | str | None = None
) -> Written:
    """Write `report.html`, `results.csv`, `.parquet` and `.md`, and `figures/`, each file whole or not at all.

    `records`: one for each cell, as the ledger has them; what an earlier report wrote is written over, and its figures
    that there are no more are removed. `study`: the folder or URL that saved models are in, where it is another.

    Raises:
        UserError: there are no records, or the folder cannot be written to.
    """
    if not records:
        raise UserError(f"There is nothing to report in '{folder}': no cell of the study is finished; run it first.")
    records = ordered(records)
    results = results_table(records)
    found = charts(results)
    pictures: list[Picture] = []
    drawn: dict[str, bytes] = {}
    for chart in found:
        figure = draw(chart)
        drawn |= {f"{chart.stem}.png": png(figure), f"{chart.stem}.svg": standalone_svg(figure).encode()}
        pictures.append(Picture(chart.kind, picture(chart, figure), chart.caption, chart.stem))
    put_figures(folder / FIGURES, drawn)
    put(folder / CSV, as_csv(results))
    put(folder / PARQUET, as_parquet(results))
    put(folder / MARKDOWN, f"# {plain(title)}\n\n{means(results, found).plain().to_markdown()}")
    put(folder / PAGE, page(records, results, found, pictures, title, models=_way(folder, study)))
    stems = tuple(folder / FIGURES / chart.stem for chart in found)
    return Written(folder / PAGE, folder / CSV, folder / PARQUET, folder / MARKDOWN, stems)


def _way(folder: Path, study: Path | str | None) -> str:
    """What stands before the path of a model in a link: the way from the page in `folder` to the study."""
    if study is None:
        return ""
    if "://" in str(study):
        return f"{str(study).rstrip('/')}/"
    way = os.path.relpath(expanded(study).absolute(), folder.absolute())
    return "" if way == "." else f"{Path(way).as_posix()}/"
