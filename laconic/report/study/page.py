"""The report of a study as one page that needs nothing beside it, and is no heavier than a page may be."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from laconic.report.html import template
from laconic.report.study.charts import Chart
from laconic.report.study.names import called
from laconic.report.study.narrative import failures, findings, paragraphs
from laconic.report.study.plans import Plan, plans
from laconic.report.study.results_table import DONE, SEED, Record, Results
from laconic.report.study.tables import Face, Sheet, Shown, every_cell, means

T = TypeVar("T")

PICTURES, CELLS, PLANS = 1_200_000, 800_000, 500_000
"""Bytes of what there may be much of, so that a page stays below 3 MB; the rest is in the files beside it."""
SECTIONS = {
    "size": "Quality against size",
    "time": "Quality against time",
    "amount": "Quality against the amount asked for",
}


@dataclass(frozen=True)
class Picture:
    """A drawn chart: `svg` is an element of the page, `caption` what it shows, and `stem` the name of its files."""

    kind: str
    svg: str
    caption: str
    stem: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows; `left` says of each part how much did not fit, `models` where saved ones lie."""

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

    def value(self, row: Mapping[str, Shown], face: Face) -> str:
        """What a cell of a table is sorted by: a number in full, as in results.csv."""
        value = row.get(face.column)
        found = getattr(value, "mean", value)
        return "" if found is None else str(found)


def page(
    records: Sequence[Record],
    results: Results,
    charts: Sequence[Chart],
    pictures: Sequence[Picture],
    title: str,
    models: str = "",
) -> str:
    """The HTML; it loads nothing from anywhere. `models` stands before the path of each saved model in links."""
    told = plans((_name(record, results), record) for record in records if record["state"] == DONE)
    shown, left_pictures = _fitting(((one, len(one.svg)) for one in pictures), PICTURES)
    cells = every_cell(results)
    rows, left_rows = _fitting(((row, 90 * len(cells.faces)) for row in cells.rows), CELLS)
    kept, left_plans = _fitting(((plan, plan.weight) for plan in told), PLANS)
    said = Page(
        title=title,
        summary=paragraphs(records, results),
        findings=findings(results),
        failures=failures(results),
        sections={
            heading: found
            for kind, heading in SECTIONS.items()
            if (found := [picture for picture in shown if picture.kind == kind])
        },
        means=means(results, charts),
        cells=Sheet(cells.name, cells.faces, tuple(rows)),
        plans=kept,
        models=models,
        saved=any(results.values("output")),
        left={"pictures": left_pictures, "cells": left_rows, "plans": left_plans},
    )
    return template("study/page.html").render(page=said)


def _fitting(weighed: Iterable[tuple[T, int]], most: int) -> tuple[list[T], int]:
    """The first ones that weigh `most` bytes together at most, and how many are left."""
    kept: list[T] = []
    everything = list(weighed)
    for one, weight in everything:
        most -= weight
        if most < 0:
            break
        kept.append(one)
    return kept, len(everything) - len(kept)


def _name(record: Record, results: Results) -> str:
    """A cell by its axes."""
    seeded = SEED in results.axes and len(results.values(results.axes[SEED])) > 1
    return called({name: value for name, value in record["axes"].items() if name != SEED or seeded})
