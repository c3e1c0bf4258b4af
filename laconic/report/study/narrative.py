"""Describe a study in sentences: the compared models, the data, the machines and the findings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laconic.evaluate.paired import MIN_DISCORDANT, Verdict
from laconic.report.study.groups import (
    KL,
    SIZE,
    CellGroup,
    GroupNames,
    Measure,
    group_cells,
    is_gain,
    quality_measures,
    verdict_of,
)
from laconic.report.study.results import DONE, SEED, Record, Results

MAX_LISTED = 8
"""The number of values of an axis above which only some are named."""


def paragraphs(records: Sequence[Record], results: Results) -> list[str]:
    """The paragraphs at the top of the page: cells, evaluation data, calibration data, machines.

    Args:
        records: the records of the cells.
        results: the same records as a table.
    """
    texts = (
        _cells(results),
        _evaluated_on(records),
        _calibrated_on(records),
        _machines(records),
        _timing_warning(results),
    )
    return [text for text in texts if text]


def findings(results: Results) -> list[str]:
    """For each model and task, a sentence on the smallest model that is not significantly worse than the original."""
    names, groups = GroupNames(results), group_cells(results)
    sentences: list[str] = []
    for measure in quality_measures(results):
        for subject in dict.fromkeys(names.subject(group) for group in groups if not group.baseline):
            members = [group for group in groups if names.subject(group) == subject]
            compared = [
                group
                for group in members
                if not group.baseline and any(verdict_of(row, measure) is not None for row in group.done)
            ]
            if compared and measure != KL:
                original = next((group for group in members if group.baseline), None)
                place = f"{names.title(subject, measure.column)}, {measure.name}"
                sentences.append(f"{place}: {_finding(names, compared, original, measure)}")
    return sentences


def failures(results: Results) -> dict[str, list[str]]:
    """The failed cells by cause."""
    causes: dict[str, list[str]] = {}
    for row in results.rows:
        if row["state"] != DONE:
            axes = [f"{name} {row[column]}" for name, column in results.axes.items() if row[column] is not None]
            causes.setdefault(str(row["error"] or "No cause was recorded."), []).append(
                f"{row['key']} ({', '.join(axes)})"
            )
    return causes


def to_list_text(values: Iterable[object]) -> str:
    """The values as a list in words. Of more than eight values, the first six and the number of the others.

    Example:
        >>> to_list_text(["a", "b", 0.5])
        'a, b and 0.5'
    """
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) > MAX_LISTED:
        return f"{', '.join(texts[: MAX_LISTED - 2])} and {len(texts) - MAX_LISTED + 2} more"
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _cells(results: Results) -> str:
    compressed = [row for row in results.rows if not row["baseline"]]
    failed = sum(row["state"] != DONE for row in results.rows)
    axes: list[str] = []
    for name, column in results.axes.items():
        values: list[Any] = list(dict.fromkeys(row[column] for row in compressed if row[column] is not None))
        if all(isinstance(value, (int, float)) for value in values):
            values.sort()
        if values:
            axes.append(f"{name} {to_list_text(values)}")
    originals = len(results.rows) - len(compressed)
    against = f" and {_count(originals, 'original')}" if originals else ""
    seeds = len(results.values(results.axes[SEED])) if SEED in results.axes else 1
    repeated = f" Figures are means over {seeds} seeds." if seeds > 1 else ""
    ended = f" {_count(failed, 'cell')} of {len(results.rows)} failed; the causes are below." if failed else ""
    return f"{_count(len(compressed), 'compressed model')}{against}: {'; '.join(axes)}.{repeated}{ended}"


def _evaluated_on(records: Sequence[Record]) -> str:
    tasks: dict[str, None] = {}
    overlaps: dict[str, None] = {}
    for record in records:
        for task, settings in ((record.get("evaluation") or {}).get("settings") or {}).items():
            context = f", {settings['context']} tokens of each at most" if settings.get("context") else ""
            rows, split = settings.get("rows", "?"), settings.get("split", "dev")
            tasks[f"{task} ({rows} rows of the {split} split{context})"] = None
            for source, shared in (settings.get("calibration_rows") or {}).items():
                if shared:
                    overlaps[f"{shared} rows of {task} are also in {source}, the calibration data"] = None
    if not tasks:
        return ""
    warning = f" Note that {'; '.join(overlaps)}." if overlaps else ""
    intervals = "Intervals are 95 % confidence intervals from a bootstrap over these rows."
    return f"Evaluated on {to_list_text(tasks)}. {intervals}{warning}"


def _calibrated_on(records: Sequence[Record]) -> str:
    """A sentence on the calibration data, from the recipes of the cells."""
    sources: dict[str, None] = {}
    for record in records:
        recipe = record.get("recipe") or {}
        if recipe.get("data") and not record.get("baseline"):
            rows, tokens = recipe.get("samples"), recipe.get("max_length")
            sources[f"{recipe['data']} ({rows} texts of {tokens} tokens at most)"] = None
    return f"Calibrated on {to_list_text(sources)}." if sources else ""


def _machines(records: Sequence[Record]) -> str:
    machines = dict.fromkeys(filter(None, (_machine(record.get("machine") or {}) for record in records)))
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) for record in records
    )
    versions_text = "; or ".join(filter(None, versions))
    measured_on = f"Measured on {'; and on '.join(machines)}." if machines else ""
    warning = " Times of different machines cannot be compared." if len(machines) > 1 else ""
    return f"{measured_on}{warning} {f'Versions: {versions_text}.' if versions_text else ''}".strip()


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [str(machine[name]) for name in ("processor", "device", "instructions") if machine.get(name)]
    threads = machine.get("threads")
    return ", ".join([*parts, *([_count(int(threads), "thread")] if threads else [])])


def _timing_warning(results: Results) -> str:
    most = max((int(workers) for workers in results.values("workers") if isinstance(workers, int)), default=1)
    if most < 2 or not results.passes:
        return ""
    return (
        f"Times are not exact: up to {most} cells ran at once on the same machine, so compare them within this study "
        "at most. Run the study with one worker for exact times."
    )


def _finding(names: GroupNames, groups: Sequence[CellGroup], original: CellGroup | None, measure: Measure) -> str:
    """One sentence on the smallest model that is not significantly worse than the original."""
    if all(verdict_of(row, measure) in (None, Verdict.CANNOT_TELL) for group in groups for row in group.done):
        return (
            "cannot tell whether any compressed model is as good as the original, as no change can be "
            f"significant on so few rows; evaluate on {MIN_DISCORDANT} rows at least, and on hundreds to see small "
            "changes."
        )
    # A failed cell has no result, so its group is left out.
    as_good = [
        (size, group)
        for group in groups
        if len(group.done) == len(group.rows)
        and all(_is_no_loss(row, measure) for row in group.done)
        and (size := group.mean(SIZE.column)) is not None
    ]
    if not as_good:
        return "every compressed model is significantly worse than the original for at least one seed."
    size, group = min(as_good, key=lambda pair: pair[0])
    original_size = original and original.mean(SIZE.column)
    of_size = f" of {SIZE.to_text(original_size)}" if original_size else ""
    figures = [group.spread(measure.column), original and original.spread(measure.column)]
    against = " against ".join(measure.form.format(figure * measure.scale) for figure in figures if figure)
    return (
        "the smallest model that is not significantly worse than the original (p ≥ 0.05 for every seed) is "
        f"{names.full_name(group)}: {SIZE.to_text(size)}{of_size}, {against}.{_detectable_change(group, measure)}"
    )


def _detectable_change(group: CellGroup, measure: Measure) -> str:
    """A sentence on the smallest change that the rows can show: noise is no proof of equality."""
    detectable = group.mean(f"{measure.column} detectable")
    if detectable is None:
        return ""
    change = f"{100 * detectable:.1f} points" if "%" in measure.form else measure.form.format(detectable)
    return f" A true change of {change} would be significant on these rows in four cases of five."


def _is_no_loss(row: Mapping[str, Any], measure: Measure) -> bool:
    """Whether the change is noise, or a gain; False where the rows cannot tell, or nothing was compared."""
    judgement = verdict_of(row, measure)
    return judgement is Verdict.NOISE or (judgement is Verdict.CHANGE and is_gain(row, measure))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
