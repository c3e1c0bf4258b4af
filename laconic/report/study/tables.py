"""The tables in the report of a study: means over seeds, all cells, and the method of each matrix."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.report.study.charts import Chart
from laconic.report.study.groups import HOW, SUBJECT, Spread, describe_change, group_cells
from laconic.report.study.measures import KL, SIZE, Measure, quality_measure, quality_measures
from laconic.report.study.results import SEED, Results, decode_name, joules_name, pass_name, prefill_name
from laconic.report.tables import Column, Table, Value

Shown = Value | Spread


@dataclass(frozen=True)
class SheetColumn:
    """A column of a table of results.

    Args:
        name: the name of the column in the results.
        heading: shown above it.
        form: format string of the scaled value; `{}` for text.
        scale: factor from the value to what is shown.
    """

    name: str
    heading: str
    form: str = "{}"
    scale: float = 1.0

    @property
    def is_text(self) -> bool:
        return self.form == "{}"

    def show(self, value: Shown) -> str:
        """The value as text; a dash for None."""
        if value is None or value == "":
            return "–"
        if isinstance(value, (int, float, Spread)) and self.scale != 1:
            value = value * self.scale
        return self.form.format(value)


@dataclass(frozen=True)
class Sheet:
    """A table of a study's page.

    Args:
        name: id of the table in the page.
        columns: the columns to show.
        rows: values by column.
    """

    name: str
    columns: tuple[SheetColumn, ...]
    rows: tuple[Mapping[str, Shown], ...]

    def without_empty(self) -> "Sheet":
        """The table without empty columns."""
        kept = [column for column in self.columns if any(row.get(column.name) not in (None, "") for row in self.rows)]
        return Sheet(self.name, tuple(kept), self.rows)

    def plain(self) -> Table:
        """The table with all values as text, for Markdown."""
        plain = tuple(Column(column.heading, "{}" if column.is_text else "{:>}") for column in self.columns)
        return Table(
            plain, tuple(tuple(column.show(row.get(column.name)) for column in self.columns) for row in self.rows)
        )


FRONT, REMARK, CELLS = "front", "remark", "cells"


def mean_table(results: Results, charts: Sequence[Chart] = ()) -> Sheet:
    """Results as means over seeds: method, quality and size first, then other axes, the verdict and times.

    Args:
        results: the table of the study.
        charts: say which groups are on a Pareto front.
    """
    axes = [column for column in axis_columns(results) if column.name != results.axes.get(SEED)]
    before = _quality_and_size(_column(measure) for measure in quality_measures(results))
    after = _times(results)
    compared = [measure for measure in quality_measures(results) if measure != KL]
    rows: list[Mapping[str, Shown]] = []
    on_front = _front_costs(charts)
    for group in group_cells(results):
        row: dict[str, Shown] = dict(group.axes)
        row |= {column.name: group.spread(column.name) for column in (*before, *after)}
        row |= {CELLS: len(group.done), REMARK: describe_change(group, compared)}
        row[FRONT] = ", ".join(on_front.get(group.keys, ()))
        rows.append(row)
    remarks = SheetColumn(REMARK, "against the original"), SheetColumn(FRONT, "best for")
    first, others = _split_axes(results, axes)
    cells = SheetColumn(CELLS, "cells", "{:d}")
    return Sheet("means", (*first, *before, *others, *remarks, cells, *after), tuple(rows)).without_empty()


def cell_table(results: Results) -> Sheet:
    """One row for each cell, with the values of results.csv: method, quality and size first.

    Args:
        results: the table of the study.
    """
    changes = [
        SheetColumn(f"{measure.column} p", f"p of {measure.name}", "{:.2g}")
        for measure in quality_measures(results)
        if measure != KL
    ]
    first, others = _split_axes(results, axis_columns(results))
    columns = (
        *first,
        *_quality_and_size(_all_measures(results)),
        *others,
        SheetColumn("state", "state"),
        *changes,
        *_times(results),
        SheetColumn("seconds", "seconds it took", "{:,.0f}"),
        SheetColumn("key", "cell"),
    )
    return Sheet("cells", columns, results.rows).without_empty()


def axis_columns(results: Results) -> list[SheetColumn]:
    """Columns of the axes with several values, and always of the model and the method."""
    always = (*SUBJECT[:1], "method", "recipe")
    return [
        SheetColumn(column, name, "{:g}" if results.kind(column) in (int, float) else "{}")
        for name, column in results.axes.items()
        if name in always or len({row[column] for row in results.rows if not row["baseline"]}) > 1
    ]


def _split_axes(results: Results, axes: Sequence[SheetColumn]) -> tuple[list[SheetColumn], list[SheetColumn]]:
    """The columns that name what was compressed and how, which stand first, and the other axes."""
    names = {results.axes[name] for name in (*SUBJECT, *HOW) if name in results.axes}
    return [axis for axis in axes if axis.name in names], [axis for axis in axes if axis.name not in names]


def _quality_and_size(measures: Iterable[SheetColumn]) -> list[SheetColumn]:
    """Scores on tasks, then sizes, then the KL; a wide column of the KL would keep sizes out of a narrow screen."""
    scores = list(measures)
    kl = [column for column in scores if column.name == KL.column]
    scores = [column for column in scores if column.name != KL.column]
    return [*scores, *_sizes(), *kl] if scores else [*kl, *_sizes()]


def _sizes() -> list[SheetColumn]:
    return [SheetColumn(SIZE.column, "file MB", "{:,.2f}", SIZE.scale), SheetColumn("kept", "matrices kept", "{:.1%}")]


def _all_measures(results: Results) -> list[SheetColumn]:
    return [_column(quality_measure(*measure)) for measure in results.measures] + [_column(KL)]


def _column(measure: Measure) -> SheetColumn:
    return SheetColumn(measure.column, measure.title, measure.form, measure.scale)


def _times(results: Results) -> list[SheetColumn]:
    """Columns of forward passes and generation, and of energy where it was measured."""
    columns: list[SheetColumn] = []
    for shape in results.passes:
        size = f"{shape[0]} × {shape[1]}"
        columns.append(SheetColumn(pass_name(*shape), f"ms for {size} tokens", "{:,.2f}", 1e3))
        columns.append(SheetColumn(joules_name(*shape), f"joules for {size} tokens", "{:,.3g}"))
    for shape in results.writings:
        size = f"{shape[0]} × {shape[1]}"
        columns.append(SheetColumn(prefill_name(*shape), f"tokens/s reading {size}", "{:,.0f}"))
        columns.append(SheetColumn(decode_name(*shape), f"tokens/s writing after {size}", "{:,.0f}"))
    return columns


def _front_costs(charts: Sequence[Chart]) -> dict[frozenset[str], list[str]]:
    """By the keys of a group's cells, the kinds of cost for which it is on a Pareto front."""
    found: dict[frozenset[str], list[str]] = {}
    for chart in charts:
        for dot in chart.dots:
            kinds = found.setdefault(dot.keys, [])
            if dot.on_front and chart.kind not in kinds:
                kinds.append(chart.kind)
    return found


LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
PLACE = "#"


@dataclass(frozen=True)
class Plan:
    """The method of each matrix, which is the same in several cells.

    Args:
        names: the names of the cells.
        sites: by site, the method and its parameters.
    """

    names: tuple[str, ...]
    sites: Mapping[str, str]

    @property
    def weight(self) -> int:
        """The approximate number of bytes that it takes in the page."""
        return sum(map(len, self.names)) + sum(len(site) + len(what) + 60 for site, what in self.sites.items())


def condense_plan(record: Mapping[str, Any]) -> dict[str, str]:
    """The method of each matrix, with similar paths joined.

    Args:
        record: the record of a cell.

    Returns:
        Methods by site, in the order of the sites; `encoder.layer.{0–5}.output.dense` stands for six sites.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for site, what in (record.get("sites") or {}).items():
        layer = LAYER.search(site)
        pattern = LAYER.sub(PLACE, site, count=1) if layer else site
        found.setdefault((pattern, method_text(what)), []).extend([int(layer[0])] if layer else [])
    return {pattern.replace(PLACE, _layer_ranges(layers), 1): what for (pattern, what), layers in found.items()}


def method_text(what: object) -> str:
    """A method and its parameters in one line.

    Example:
        >>> method_text({"svd": {"rank": 64}})
        'svd: rank 64'
    """
    if isinstance(what, Mapping):
        return " + ".join(_line(str(name), parameters) for name, parameters in what.items())
    return str(what)


def group_plans(named: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Plan]:
    """The plans of cells, equal ones joined.

    Args:
        named: records of cells by their names; those without matrices have no plan.
    """
    owners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, record in named:
        if found := condense_plan(record):
            owners.setdefault(tuple(found.items()), []).append(name)
    return [Plan(tuple(names), dict(sites)) for sites, names in owners.items()]


def _line(name: str, parameters: object) -> str:
    if not isinstance(parameters, Mapping) or not parameters:
        return name
    values = ", ".join(
        f"{key} {method_text(value) if isinstance(value, Mapping) else value}" for key, value in parameters.items()
    )
    return f"{name}: {values}"


def _layer_ranges(layers: Sequence[int]) -> str:
    """Numbers in short: {0–3, 5} for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return said if len(layers) == 1 else f"{{{said}}}"
