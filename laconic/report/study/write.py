"""The whole report of a study, written to a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.errors import UserError
from laconic.report.curves import png
from laconic.report.plots import standalone_svg
from laconic.report.study.charts import charts
from laconic.report.study.files import as_csv, as_parquet, put
from laconic.report.study.flat import flat
from laconic.report.study.page import Picture, page
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


def write_report(records: Sequence[Mapping[str, Any]], folder: Path, title: str) -> Written:
    """Write `report.html`, `results.csv`, `.parquet` and `.md`, and `figures/`, each file whole or not at all.

    `records`: one for each cell, as the ledger has them; what an earlier report wrote is written over.

    Raises:
        UserError: there are no records, or the folder cannot be written to.
    """
    if not records:
        raise UserError(f"There is nothing to report in '{folder}': no cell of the study is finished; run it first.")
    results = flat(records)
    found = charts(results)
    pictures: list[Picture] = []
    for chart in found:
        figure = draw(chart)
        put(folder / FIGURES / f"{chart.stem}.png", png(figure))
        put(folder / FIGURES / f"{chart.stem}.svg", standalone_svg(figure))
        pictures.append(Picture(chart.kind, picture(chart, figure), chart.caption, chart.stem))
    put(folder / CSV, as_csv(results))
    put(folder / PARQUET, as_parquet(results))
    put(folder / MARKDOWN, f"# {title}\n\n{means(results, found).plain().to_markdown()}")
    put(folder / PAGE, page(records, results, found, pictures, title))
    stems = tuple(folder / FIGURES / chart.stem for chart in found)
    return Written(folder / PAGE, folder / CSV, folder / PARQUET, folder / MARKDOWN, stems)
