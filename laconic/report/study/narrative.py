"""A study said in sentences: what was done, on what, where, and what came out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laconic.evaluate.paired import FEWEST, Verdict
from laconic.report.study.groups import Group, grouped
from laconic.report.study.measures import KL, SIZE, Measure, qualities
from laconic.report.study.names import Names
from laconic.report.study.remarks import verdict_of
from laconic.report.study.results_table import DONE, SEED, Record, Results

MANY = 8
"""Values of an axis from which only some are named."""


def paragraphs(records: Sequence[Record], results: Results) -> list[str]:
    """The paragraphs above everything else."""
    return list(filter(None, (_cells(results), _judged(records), _made(records), _machines(records), _beside(results))))


def findings(results: Results) -> list[str]:
    """Of each model and task the smallest that is no worse than the original as far as the rows can tell."""
    names, groups = Names(results), grouped(results)
    found: list[str] = []
    for measure in (one for one in qualities(results) if one != KL):
        for subject in dict.fromkeys(names.subject(group) for group in groups if not group.baseline):
            here = [group for group in groups if names.subject(group) == subject and not group.baseline]
            compared = [group for group in here if any(verdict_of(row, measure) is not None for row in group.done)]
            if compared:
                base = next((one for one in groups if one.baseline and names.subject(one) == subject), None)
                found.append(_smallest(names, compared, base, measure, subject))
    return found


def failures(results: Results) -> dict[str, list[str]]:
    """By cause, the cells that it befell."""
    found: dict[str, list[str]] = {}
    for row in results.rows:
        if row["state"] != DONE:
            where = ", ".join(
                f"{name} {row[column]}" for name, column in results.axes.items() if row[column] is not None
            )
            found.setdefault(str(row["error"] or "No cause was recorded."), []).append(f"{row['key']} ({where})")
    return found


def listed(values: Iterable[object]) -> str:
    """a, b and c; of many the first ones, and how many more."""
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
    against = (
        f", and {_count(originals, 'model')} as {'it was' if originals == 1 else 'they were'}" if originals else ""
    )
    seeds = len(results.values(results.axes[SEED])) if SEED in results.axes else 1
    repeated = f" What is shown of a cell with several seeds is the mean over {seeds}." if seeds > 1 else ""
    ended = f" {_count(failed, 'cell')} of {len(results.rows)} failed; the causes are below." if failed else ""
    return f"{_count(len(compressed), 'compressed model')}{against}: {'; '.join(axes)}.{repeated}{ended}"


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values) if all(isinstance(value, (int, float)) for value in values) else values


def _judged(records: Sequence[Record]) -> str:
    said: dict[str, None] = {}
    overlaps: dict[str, None] = {}
    for record in records:
        for task, settings in ((record.get("evaluation") or {}).get("settings") or {}).items():
            context = f", {settings['context']} tokens of each at most" if settings.get("context") else ""
            said[f"{task} ({settings.get('rows', '?')} rows of the {settings.get('split', 'dev')} split{context})"] = (
                None
            )
            for source, rows in (settings.get("calibration_rows") or {}).items():
                if rows:
                    overlaps[f"{rows} rows of {task} are also in {source}, which was calibrated on"] = None
    if not said:
        return ""
    warning = f" Beware: {'; '.join(overlaps)}." if overlaps else ""
    return f"Judged on {listed(said)}. Intervals are of 95 %, by resampling those rows.{warning}"


def _made(records: Sequence[Record]) -> str:
    """The calibration, as the recipes have it."""
    said: dict[str, None] = {}
    for record in records:
        recipe = record.get("recipe") or {}
        if recipe.get("data") and not record.get("baseline"):
            rows, tokens = recipe.get("samples"), recipe.get("max_length")
            said[f"{recipe['data']} ({rows} texts of {tokens} tokens at most)"] = None
    return f"Calibrated on {listed(said)}." if said else ""


def _machines(records: Sequence[Record]) -> str:
    machines = dict.fromkeys(filter(None, (_machine(record.get("machine") or {}) for record in records)))
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) for record in records
    )
    told = "; or ".join(filter(None, versions))
    where = f"Measured on {'; and on '.join(machines)}." if machines else ""
    unlike = " Times of different machines do not compare." if len(machines) > 1 else ""
    return f"{where}{unlike} {f'Versions: {told}.' if told else ''}".strip()


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [str(machine[name]) for name in ("processor", "device", "instructions") if machine.get(name)]
    threads = machine.get("threads")
    return ", ".join([*parts, *([_count(int(threads), "thread")] if threads else [])])


def _beside(results: Results) -> str:
    most = max((int(workers) for workers in results.values("workers") if isinstance(workers, int)), default=1)
    if most < 2 or not results.passes:
        return ""
    return (
        f"Beware of the times: up to {most} cells were worked on at once, so each was measured beside other work. "
        "They compare within this study at best; run it with one worker for times that hold."
    )


def _smallest(names: Names, groups: Sequence[Group], base: Group | None, measure: Measure, subject: str) -> str:
    """One sentence on what can be had for nothing."""
    where = f"{names.title(subject, measure.column)}, {measure.name}"
    if all(verdict_of(row, measure) in (None, Verdict.CANNOT_TELL) for group in groups for row in group.done):
        return (
            f"{where}: cannot tell whether any compressed model is as good as the original: on so few rows chance "
            f"alone brings about any change in one of twenty comparisons or more; judge on {FEWEST} rows at least, and "
            "on hundreds to see small changes."
        )
    # Of a cell that failed nobody knows.
    quiet = [
        group
        for group in groups
        if len(group.done) == len(group.rows) and all(_is_no_loss(row, measure) for row in group.done)
    ]
    sized = [(size, group) for group in quiet if (size := group.mean(SIZE.column)) is not None]
    if not sized:
        return f"{where}: of no compressed model is the loss within noise for every seed."
    size, group = min(sized, key=lambda pair: pair[0])
    whole = base and base.mean(SIZE.column)
    of = f" of {SIZE.written(whole)}" if whole else ""
    figures = [figure for figure in (group.spread(measure.column), base and base.spread(measure.column)) if figure]
    against = " against ".join(measure.form.format(figure * measure.scale) for figure in figures)
    return (
        f"{where}: the smallest model whose loss is within noise (p ≥ 0.05 for every seed) is {names.whole(group)}: "
        f"{SIZE.written(size)}{of}, {against}.{_would_show(group, measure)}"
    )


def _would_show(group: Group, measure: Measure) -> str:
    """How small a loss the rows tell from chance: noise is no proof of equality."""
    detectable = group.mean(f"{measure.column} detectable")
    if detectable is None:
        return ""
    said = f"{100 * detectable:.1f} points" if "%" in measure.form else measure.form.format(detectable)
    return f" These rows show a change of {said} in four cases of five."


def _is_no_loss(row: Mapping[str, Any], measure: Measure) -> bool:
    """Whether the change is noise, or a gain; where the rows cannot tell, or nothing was compared, nobody knows."""
    found, change = verdict_of(row, measure), row.get(f"{measure.column} change")
    gains = isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better
    return found is Verdict.NOISE or (found is Verdict.CHANGE and gains)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
