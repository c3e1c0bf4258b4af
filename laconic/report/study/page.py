"""The report of a study as one self-contained page of less than 3 MB: sentences, charts, tables, and plans.

The tables have means over seeds and all cells. A plan is the method of each matrix of a model.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar

from laconic.report.html import load_template
from laconic.report.study.charts import Chart
from laconic.report.study.groups import (
    KL,
    METHOD_AXES,
    SIZE,
    SUBJECT_AXES,
    Measure,
    cell_name,
    describe_change,
    group_cells,
    quality_measure,
    quality_measures,
)
from laconic.report.study.narrative import failures, findings, paragraphs
from laconic.report.study.results import (
    DONE,
    SEED,
    Record,
    Results,
    decode_name,
    joules_name,
    pass_name,
    prefill_name,
)
from laconic.report.tables import Column, Table, TableValue

T = TypeVar("T")

MAX_PICTURE_BYTES, MAX_CELL_BYTES, MAX_PLAN_BYTES = 1_200_000, 800_000, 500_000
"""Limits that keep a page below 3 MB; the rest is in the files beside it."""
SECTIONS = {
    "size": "Quality against size",
    "time": "Quality against time",
    "amount": "Quality against the requested amount",
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
        results: the same records as a table.
        charts: the charts of the study.
        pictures: the charts as elements of the page.
        title: heading of the page.
        models: the prefix of the paths of saved models in links.
    """
    fitting, left_pictures = _take_up_to(pictures, lambda picture: len(picture.svg), MAX_PICTURE_BYTES)
    cells = cell_table(results)
    rows, left_rows = _take_up_to(cells.rows, lambda row: 90 * len(row), MAX_CELL_BYTES)
    plans = group_plans((_cell_label(record, results), record) for record in records if record["state"] == DONE)
    fitting_plans, left_plans = _take_up_to(plans, lambda plan: plan.nbytes, MAX_PLAN_BYTES)
    sections = {heading: [picture for picture in fitting if picture.kind == kind] for kind, heading in SECTIONS.items()}
    return load_template("study/page.html").render(
        title=title,
        summary=paragraphs(records, results),
        findings=findings(results),
        failures=failures(results),
        sections={heading: section for heading, section in sections.items() if section},
        means=mean_table(results, charts),
        cells=replace(cells, rows=tuple(rows)),
        links={row["key"]: f"{models}{row['output']}" for row in results.rows if row["output"]},
        plans=fitting_plans,
        left_out={"pictures": left_pictures, "cells": left_rows, "plans": left_plans},
    )


def _take_up_to(items: Sequence[T], size: Callable[[T], int], limit: int) -> tuple[Sequence[T], int]:
    """The first items whose sizes sum to at most `limit` bytes, and the number of the remaining items."""
    count = bisect_right(list(accumulate(map(size, items))), limit)
    return items[:count], len(items) - count


def _cell_label(record: Record, results: Results) -> str:
    """The name of a cell, with its seed where there are several."""
    seeded = SEED in results.axes and len(results.values(results.axes[SEED])) > 1
    return cell_name({name: value for name, value in record["axes"].items() if name != SEED or seeded})


FRONT, REMARK, CELLS = "front", "remark", "cells"


def mean_table(results: Results, charts: Sequence[Chart] = ()) -> Table:
    """Results as means over seeds: method, quality and size first, then other axes, the verdict and times.

    Args:
        results: the table of the study.
        charts: say which groups are on a Pareto front.
    """
    first, others = _axis_columns(results, without=SEED)
    measures = quality_measures(results)
    scores, times = _quality_and_size(measures), _times(results)
    remarks = Column("against the original", name=REMARK), Column("best for", name=FRONT)
    columns = (*first, *scores, *others, *remarks, Column("cells", "{:d}", name=CELLS), *times)
    rows = (
        {
            **group.axes,
            **{column.name: group.spread(column.name) for column in (*scores, *times)},
            CELLS: len(group.done),
            REMARK: describe_change(group, [measure for measure in measures if measure != KL]),
            FRONT: ", ".join(_front_costs(charts, group.keys)),
        }
        for group in group_cells(results)
    )
    return _table(columns, rows)


def cell_table(results: Results) -> Table:
    """One row for each cell, with the values of results.csv: method, quality and size first.

    Args:
        results: the table of the study.
    """
    first, others = _axis_columns(results)
    compared = [measure for measure in quality_measures(results) if measure != KL]
    columns = (
        *first,
        *_quality_and_size([*(quality_measure(*measure) for measure in results.measures), KL]),
        *others,
        Column("state", name="state"),
        *(Column(f"p of {measure.name}", "{:.2g}", name=f"{measure.column} p") for measure in compared),
        *_times(results),
        Column("seconds", "{:,.0f}", name="seconds"),
        Column("cell", name="key"),
    )
    return _table(columns, results.rows)


def _table(columns: Sequence[Column], rows: Iterable[Mapping[str, TableValue]]) -> Table:
    """A table of rows by the names of columns, without empty columns."""
    values = [[row.get(column.name) for column in columns] for row in rows]
    filled = tuple(tuple(None if value == "" else value for value in row) for row in values)
    return Table(tuple(columns), filled).without_empty_columns()


def _axis_columns(results: Results, without: str = "") -> tuple[list[Column], list[Column]]:
    """The columns of the axes that name what was compressed and how, which stand first, and of the other axes.

    Only axes with several values have a column, except that the model and the method always have one.
    """
    first: list[Column] = []
    others: list[Column] = []
    for name, column in results.axes.items():
        always = name in (SUBJECT_AXES[0], *METHOD_AXES)
        if name != without and (always or len({row[column] for row in results.rows if not row["baseline"]}) > 1):
            form = "{:g}" if results.kind(column) in (int, float) else "{}"
            (first if name in (*SUBJECT_AXES, *METHOD_AXES) else others).append(Column(name, form, name=column))
    return first, others


def _quality_and_size(measures: Sequence[Measure]) -> list[Column]:
    """Scores on tasks, then sizes, then the KL; a wide column of the KL would keep sizes out of a narrow screen."""
    scores = [_measure_column(measure) for measure in measures if measure != KL]
    kl = [_measure_column(measure) for measure in measures if measure == KL]
    sizes = [
        Column("file MB", "{:,.2f}", SIZE.scale, SIZE.column),
        Column("matrices kept", "{:.1%}", name="kept"),
    ]
    return [*scores, *sizes, *kl] if scores else [*kl, *sizes]


def _measure_column(measure: Measure) -> Column:
    return Column(measure.title, measure.form, measure.scale, measure.column)


def _times(results: Results) -> list[Column]:
    """Columns of forward passes and generation, and of energy where it was measured."""
    columns: list[Column] = []
    for rows, tokens in results.passes:
        columns.append(Column(f"ms for {rows} × {tokens} tokens", "{:,.2f}", 1e3, pass_name(rows, tokens)))
        columns.append(Column(f"joules for {rows} × {tokens} tokens", "{:,.3g}", name=joules_name(rows, tokens)))
    for rows, tokens in results.generations:
        columns.append(Column(f"tokens/s reading {rows} × {tokens}", "{:,.0f}", name=prefill_name(rows, tokens)))
        columns.append(Column(f"tokens/s writing after {rows} × {tokens}", "{:,.0f}", name=decode_name(rows, tokens)))
    return columns


def _front_costs(charts: Sequence[Chart], keys: frozenset[str]) -> list[str]:
    """The kinds of cost for which the group of cells with these keys is on a Pareto front."""
    return list(
        dict.fromkeys(chart.kind for chart in charts for dot in chart.dots if dot.on_front and dot.keys == keys)
    )


LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
PLACE = "#"


@dataclass(frozen=True)
class SharedPlan:
    """The method of each matrix, which is the same in several cells.

    Args:
        names: the names of the cells.
        sites: by site, the method and its parameters.
    """

    names: tuple[str, ...]
    sites: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """The approximate number of bytes that it takes in the page."""
        return sum(map(len, self.names)) + sum(len(site) + len(method) + 60 for site, method in self.sites.items())


def condense_plan(record: Mapping[str, Any]) -> dict[str, str]:
    """The method of each matrix, with similar paths joined.

    Args:
        record: the record of a cell.

    Returns:
        Methods by site, in the order of the sites; `encoder.layer.{0–5}.output.dense` stands for six sites.
    """
    layers: dict[tuple[str, str], list[int]] = {}
    for site, method in (record.get("sites") or {}).items():
        layer = LAYER.search(site)
        pattern = LAYER.sub(PLACE, site, count=1) if layer else site
        layers.setdefault((pattern, method_text(method)), []).extend([int(layer[0])] if layer else [])
    return {pattern.replace(PLACE, _layer_ranges(numbers), 1): method for (pattern, method), numbers in layers.items()}


def method_text(method: object) -> str:
    """A method and its parameters in one line.

    Example:
        >>> method_text({"svd": {"rank": 64}})
        'svd: rank 64'
    """
    if not isinstance(method, Mapping):
        return str(method)
    texts: list[str] = []
    for name, parameters in method.items():
        values = parameters.items() if isinstance(parameters, Mapping) else ()
        texts.append(f"{name}: {', '.join(f'{key} {method_text(value)}' for key, value in values)}" if values else name)
    return " + ".join(texts)


def group_plans(records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[SharedPlan]:
    """The plans of cells, equal ones joined.

    Args:
        records: names and records of cells; those without matrices have no plan.
    """
    owners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, record in records:
        if methods := condense_plan(record):
            owners.setdefault(tuple(methods.items()), []).append(name)
    return [SharedPlan(tuple(names), dict(sites)) for sites, names in owners.items()]


def _layer_ranges(layers: Sequence[int]) -> str:
    """Numbers in short: {0–3, 5} for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return text if len(layers) == 1 else f"{{{text}}}"
