"""The report of a study as one self-contained page of less than 3 MB."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from laconic.report.html import load_template
from laconic.report.study.charts import Chart
from laconic.report.study.groups import cell_name
from laconic.report.study.narrative import failures, findings, paragraphs
from laconic.report.study.results import DONE, SEED, Record, Results
from laconic.report.study.tables import Plan, Sheet, SheetColumn, Shown, cell_table, group_plans, mean_table

T = TypeVar("T")

MAX_PICTURE_BYTES, MAX_CELL_BYTES, MAX_PLAN_BYTES = 1_200_000, 800_000, 500_000
"""Limits that keep a page below 3 MB; the rest is in the files beside it."""
SECTIONS = {
    "size": "Quality against size",
    "time": "Quality against time",
    "amount": "Quality against the amount asked for",
}


@dataclass(frozen=True)
class Picture:
    """A chart as an element of the page.

    Args:
        kind: section of the page.
        svg: element of the page.
        caption: what the chart shows.
        stem: name of its files.
    """

    kind: str
    svg: str
    caption: str
    stem: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of the page of a study.

    Args:
        title: heading of the page.
        summary: paragraphs at its top.
        findings: sentences.
        failures: failed cells by cause.
        sections: charts by heading.
        means: table of means over seeds.
        cells: table of all cells.
        plans: the method of each matrix, for groups of cells.
        saved: whether models were saved.
        models: the prefix of the paths of saved models in links.
        left: the number of pictures, cells and plans that were left out.
    """

    title: str
    summary: Sequence[str]
    findings: Sequence[str]
    failures: Mapping[str, Sequence[str]]
    sections: Mapping[str, Sequence[Picture]]
    means: Sheet
    cells: Sheet
    plans: Sequence[Plan]
    saved: bool
    models: str
    left: Mapping[str, int]

    def value(self, row: Mapping[str, Shown], column: SheetColumn) -> str:
        """The value by which a column is sorted: a number in full, as in results.csv."""
        value = row.get(column.name)
        found = getattr(value, "mean", value)
        return "" if found is None else str(found)


def study_page(
    records: Sequence[Record],
    results: Results,
    charts: Sequence[Chart],
    pictures: Sequence[Picture],
    title: str,
    models: str = "",
) -> str:
    """The HTML of the report; it loads nothing from elsewhere.

    Args:
        records: the records of the study.
        results: the same as a table.
        charts: the charts of the study.
        pictures: the charts as elements of the page.
        title: heading of the page.
        models: the prefix of the paths of saved models in links.
    """
    all_plans = group_plans((_cell_label(record, results), record) for record in records if record["state"] == DONE)
    fitting, left_pictures = _take_up_to(((one, len(one.svg)) for one in pictures), MAX_PICTURE_BYTES)
    cells = cell_table(results)
    rows, left_rows = _take_up_to(((row, 90 * len(cells.columns)) for row in cells.rows), MAX_CELL_BYTES)
    fitting_plans, left_plans = _take_up_to(((plan, plan.weight) for plan in all_plans), MAX_PLAN_BYTES)
    content = Page(
        title=title,
        summary=paragraphs(records, results),
        findings=findings(results),
        failures=failures(results),
        sections={
            heading: found
            for kind, heading in SECTIONS.items()
            if (found := [picture for picture in fitting if picture.kind == kind])
        },
        means=mean_table(results, charts),
        cells=Sheet(cells.name, cells.columns, tuple(rows)),
        plans=fitting_plans,
        models=models,
        saved=any(results.values("output")),
        left={"pictures": left_pictures, "cells": left_rows, "plans": left_plans},
    )
    return load_template("study/page.html").render(page=content)


def _take_up_to(weighed: Iterable[tuple[T, int]], most: int) -> tuple[list[T], int]:
    """The first items whose sizes sum to at most `most` bytes, and the number of the remaining items."""
    kept: list[T] = []
    everything = list(weighed)
    for one, weight in everything:
        most -= weight
        if most < 0:
            break
        kept.append(one)
    return kept, len(everything) - len(kept)


def _cell_label(record: Record, results: Results) -> str:
    """The name of a cell, with its seed where there are several."""
    seeded = SEED in results.axes and len(results.values(results.axes[SEED])) > 1
    return cell_name({name: value for name, value in record["axes"].items() if name != SEED or seeded})
