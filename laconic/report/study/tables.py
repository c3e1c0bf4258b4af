"""The tables of a study: every group with means over its seeds, and every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laconic.report.study.charts import Chart
from laconic.report.study.costs import decode_name, joules_name, pass_name, prefill_name
from laconic.report.study.groups import Spread, grouped
from laconic.report.study.measures import KL, SIZE, Measure, qualities, quality
from laconic.report.study.names import SUBJECT
from laconic.report.study.remarks import remark
from laconic.report.study.results_table import SEED, Results
from laconic.report.tables import Column, Table, Value

Shown = Value | Spread


@dataclass(frozen=True)
class Face:
    """How a column of the results is shown: under which heading, in which form, its values multiplied with what."""

    column: str
    heading: str
    form: str = "{}"
    scale: float = 1.0

    @property
    def is_text(self) -> bool:
        return self.form == "{}"

    def show(self, value: Shown) -> str:
        """A dash for what was not measured."""
        if value is None or value == "":
            return "–"
        if isinstance(value, (int, float, Spread)) and self.scale != 1:
            value = value * self.scale
        return self.form.format(value)


@dataclass(frozen=True)
class Sheet:
    """Rows of values by column, and the faces of those that are shown; `name` says what it is a table of."""

    name: str
    faces: tuple[Face, ...]
    rows: tuple[Mapping[str, Shown], ...]

    def without_empty(self) -> "Sheet":
        """Only the columns in which there is anything."""
        kept = [face for face in self.faces if any(row.get(face.column) not in (None, "") for row in self.rows)]
        return Sheet(self.name, tuple(kept), self.rows)

    def plain(self) -> Table:
        """The same as text, for Markdown."""
        columns = tuple(Column(face.heading, "{}" if face.is_text else "{:>}") for face in self.faces)
        return Table(columns, tuple(tuple(face.show(row.get(face.column)) for face in self.faces) for row in self.rows))


FRONT, REMARK, CELLS = "front", "remark", "cells"


def means(results: Results, charts: Sequence[Chart] = ()) -> Sheet:
    """One row for each group of cells that differ in their seed alone; `charts` say what is on a front."""
    axes = [face for face in axis_faces(results) if face.column != results.axes.get(SEED)]
    before = [*_sizes(), *(_face(measure) for measure in qualities(results))]
    after = _times(results)
    compared = [measure for measure in qualities(results) if measure != KL]
    rows: list[Mapping[str, Shown]] = []
    on_front = _on_front(charts)
    for group in grouped(results):
        row: dict[str, Shown] = dict(group.axes)
        row |= {face.column: group.spread(face.column) for face in (*before, *after)}
        row |= {CELLS: len(group.done), REMARK: remark(group, compared)}
        row[FRONT] = ", ".join(on_front.get(group.keys, ()))
        rows.append(row)
    said = Face(REMARK, "against the original"), Face(FRONT, "best for")
    return Sheet("means", (*axes, Face(CELLS, "cells", "{:d}"), *before, *said, *after), tuple(rows)).without_empty()


def every_cell(results: Results) -> Sheet:
    """One row for each cell, its values those of results.csv."""
    changes = [
        Face(f"{measure.column} p", f"p of {measure.name}", "{:.2g}") for measure in qualities(results) if measure != KL
    ]
    faces = (
        *axis_faces(results),
        Face("state", "state"),
        *_sizes(),
        *_all_measures(results),
        *changes,
        *_times(results),
        Face("seconds", "seconds it took", "{:,.0f}"),
        Face("key", "cell"),
    )
    return Sheet("cells", faces, results.rows).without_empty()


def axis_faces(results: Results) -> list[Face]:
    """Axes on which there is more than one value, and always what was compressed and how."""
    always = (*SUBJECT[:1], "method", "recipe")
    return [
        Face(column, name, "{:g}" if results.kind(column) in (int, float) else "{}")
        for name, column in results.axes.items()
        if name in always or len({row[column] for row in results.rows if not row["baseline"]}) > 1
    ]


def _sizes() -> list[Face]:
    return [Face(SIZE.column, "file MB", "{:,.2f}", SIZE.scale), Face("kept", "matrices kept", "{:.1%}")]


def _all_measures(results: Results) -> list[Face]:
    return [_face(quality(*measure)) for measure in results.measures] + [_face(KL)]


def _face(measure: Measure) -> Face:
    return Face(measure.column, measure.title, measure.form, measure.scale)


def _times(results: Results) -> list[Face]:
    """Of reading and of writing, and the energy where it was counted."""
    faces: list[Face] = []
    for shape in results.passes:
        said = f"{shape[0]} × {shape[1]}"
        faces.append(Face(pass_name(*shape), f"ms for {said} tokens", "{:,.2f}", 1e3))
        faces.append(Face(joules_name(*shape), f"joules for {said} tokens", "{:,.3g}"))
    for shape in results.writings:
        said = f"{shape[0]} × {shape[1]}"
        faces.append(Face(prefill_name(*shape), f"tokens/s reading {said}", "{:,.0f}"))
        faces.append(Face(decode_name(*shape), f"tokens/s writing after {said}", "{:,.0f}"))
    return faces


def _on_front(charts: Sequence[Chart]) -> dict[frozenset[str], list[str]]:
    """By the keys of a group's cells, for what kinds of cost it is on a front."""
    found: dict[frozenset[str], list[str]] = {}
    for chart in charts:
        for dot in chart.dots:
            kinds = found.setdefault(dot.keys, [])
            if dot.on_front and chart.kind not in kinds:
                kinds.append(chart.kind)
    return found
