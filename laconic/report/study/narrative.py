"""Describe a study in sentences: the compared models, the data, the machines and the findings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laconic.evaluate.paired import MIN_DISCORDANT, Verdict
from laconic.report.study.groups import Group, Names, group_cells, verdict_of
from laconic.report.study.measures import KL, SIZE, Measure, quality_measures
from laconic.report.study.results import DONE, SEED, Record, Results

MANY = 8
"""The number of values of an axis above which only some are named."""


def paragraphs(records: Sequence[Record], results: Results) -> list[str]:
    """The paragraphs at the top of the page: cells, evaluation data, calibration data, machines.

    Args:
        records: the records of the cells.
        results: the same as a table.
    """
    return list(
        filter(
            None,
            (
                _cells(results),
                _evaluated_on(records),
                _calibrated_on(records),
                _machines(records),
                _timing_warning(results),
            ),
        )
    )


def findings(results: Results) -> list[str]:
    """For each model and task, a sentence on the smallest model that is not significantly worse than the original."""
    names, groups = Names(results), group_cells(results)
    found: list[str] = []
    for measure in (one for one in quality_measures(results) if one != KL):
        for subject in dict.fromkeys(names.subject(group) for group in groups if not group.baseline):
            here = [group for group in groups if names.subject(group) == subject and not group.baseline]
            compared = [group for group in here if any(verdict_of(row, measure) is not None for row in group.done)]
            if compared:
                base = next((one for one in groups if one.baseline and names.subject(one) == subject), None)
                found.append(_finding(names, compared, base, measure, subject))
    return found


def failures(results: Results) -> dict[str, list[str]]:
    """The failed cells by cause."""
    found: dict[str, list[str]] = {}
    for row in results.rows:
        if row["state"] != DONE:
            where = ", ".join(
                f"{name} {row[column]}" for name, column in results.axes.items() if row[column] is not None
            )
            found.setdefault(str(row["error"] or "No cause was recorded."), []).append(f"{row['key']} ({where})")
    return found


def listed(values: Iterable[object]) -> str:
    """The values as a list in words. Of more than eight values, the first six and the number of the others.

    Example:
        >>> listed(["a", "b", 0.5])
        'a, b and 0.5'
    """
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) > MANY:
        return f"{', '.join(texts[: MANY - 2])} and {len(texts) - MANY + 2} more"
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _cells(results: Results) -> str:
    compressed = [row for row in results.rows if not row["baseline"]]
    failed = sum(row["state"] != DONE for row in results.rows)
    axes: list[str] = []
    for name, column in results.axes.items():
        values = list(dict.fromkeys(row[column] for row in compressed if row[column] is not None))
        if values:
            axes.append(f"{name} {listed(_sorted(values))}")
    originals = len(results.rows) - len(compressed)
    against = f" and {_count(originals, 'original')}" if originals else ""
    seeds = len(results.values(results.axes[SEED])) if SEED in results.axes else 1
    repeated = f" Figures are means over {seeds} seeds." if seeds > 1 else ""
    ended = f" {_count(failed, 'cell')} of {len(results.rows)} failed; the causes are below." if failed else ""
    return f"{_count(len(compressed), 'compressed model')}{against}: {'; '.join(axes)}.{repeated}{ended}"


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values) if all(isinstance(value, (int, float)) for value in values) else values


def _evaluated_on(records: Sequence[Record]) -> str:
    tasks: dict[str, None] = {}
    overlaps: dict[str, None] = {}
    for record in records:
        for task, settings in ((record.get("evaluation") or {}).get("settings") or {}).items():
            context = f", {settings['context']} tokens of each at most" if settings.get("context") else ""
            tasks[f"{task} ({settings.get('rows', '?')} rows of the {settings.get('split', 'dev')} split{context})"] = (
                None
            )
            for source, rows in (settings.get("calibration_rows") or {}).items():
                if rows:
                    overlaps[f"{rows} rows of {task} are also in {source}, the calibration data"] = None
    if not tasks:
        return ""
    warning = f" Note that {'; '.join(overlaps)}." if overlaps else ""
    intervals = "Intervals are 95 % confidence intervals from a bootstrap over these rows."
    return f"Evaluated on {listed(tasks)}. {intervals}{warning}"


def _calibrated_on(records: Sequence[Record]) -> str:
    """The calibration, as the recipes have it."""
    sources: dict[str, None] = {}
    for record in records:
        recipe = record.get("recipe") or {}
        if recipe.get("data") and not record.get("baseline"):
            rows, tokens = recipe.get("samples"), recipe.get("max_length")
            sources[f"{recipe['data']} ({rows} texts of {tokens} tokens at most)"] = None
    return f"Calibrated on {listed(sources)}." if sources else ""


def _machines(records: Sequence[Record]) -> str:
    machines = dict.fromkeys(filter(None, (_machine(record.get("machine") or {}) for record in records)))
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) for record in records
    )
    versions_text = "; or ".join(filter(None, versions))
    where = f"Measured on {'; and on '.join(machines)}." if machines else ""
    unlike = " Times of different machines cannot be compared." if len(machines) > 1 else ""
    return f"{where}{unlike} {f'Versions: {versions_text}.' if versions_text else ''}".strip()


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


def _finding(names: Names, groups: Sequence[Group], base: Group | None, measure: Measure, subject: str) -> str:
    """One sentence on the smallest model that is not significantly worse than the original."""
    where = f"{names.title(subject, measure.column)}, {measure.name}"
    if all(verdict_of(row, measure) in (None, Verdict.CANNOT_TELL) for group in groups for row in group.done):
        return (
            f"{where}: cannot tell whether any compressed model is as good as the original, as no change can be "
            f"significant on so few rows; evaluate on {MIN_DISCORDANT} rows at least, and on hundreds to see small "
            "changes."
        )
    # A failed cell has no result, so its group is left out.
    quiet = [
        group
        for group in groups
        if len(group.done) == len(group.rows) and all(_is_no_loss(row, measure) for row in group.done)
    ]
    sized = [(size, group) for group in quiet if (size := group.mean(SIZE.column)) is not None]
    if not sized:
        return f"{where}: every compressed model is significantly worse than the original for at least one seed."
    size, group = min(sized, key=lambda pair: pair[0])
    whole = base and base.mean(SIZE.column)
    of = f" of {SIZE.written(whole)}" if whole else ""
    figures = [figure for figure in (group.spread(measure.column), base and base.spread(measure.column)) if figure]
    against = " against ".join(measure.form.format(figure * measure.scale) for figure in figures)
    return (
        f"{where}: the smallest model that is not significantly worse than the original (p ≥ 0.05 for every seed) "
        f"is {names.full_name(group)}: "
        f"{SIZE.written(size)}{of}, {against}.{_detectable_change(group, measure)}"
    )


def _detectable_change(group: Group, measure: Measure) -> str:
    """A sentence on the smallest change that the rows can show: noise is no proof of equality."""
    detectable = group.mean(f"{measure.column} detectable")
    if detectable is None:
        return ""
    change = f"{100 * detectable:.1f} points" if "%" in measure.form else measure.form.format(detectable)
    return f" A true change of {change} would be significant on these rows in four cases of five."


def _is_no_loss(row: Mapping[str, Any], measure: Measure) -> bool:
    """Whether the change is noise, or a gain; False where the rows cannot tell, or nothing was compared."""
    found, change = verdict_of(row, measure), row.get(f"{measure.column} change")
    gains = isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better
    return found is Verdict.NOISE or (found is Verdict.CHANGE and gains)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
