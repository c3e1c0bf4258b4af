"""What the difference of a group to the original is worth: a change, or noise."""

from collections.abc import Sequence

from laconic.evaluate.paired import SIGNIFICANT
from laconic.report.study.flat import DONE, Row
from laconic.report.study.groups import Group
from laconic.report.study.measures import Measure


def remark(group: Group, measures: Sequence[Measure]) -> str:
    """In words, by measure where there are several; "" where nothing was compared."""
    if group.baseline:
        return "the original"
    found = [(measure, _verdict(group.done, measure)) for measure in measures]
    said = [(measure, verdict) for measure, verdict in found if verdict]
    verdicts = {verdict for _, verdict in said}
    if len(verdicts) == 1:
        parts = [f"{next(iter(verdicts))} (all {len(said)} tasks)"] if len(said) > 1 else list(verdicts)
    else:
        parts = [f"{measure.name}: {verdict}" for measure, verdict in said]
    failed = sum(row["state"] != DONE for row in group.rows)
    if failed:
        parts.append("failed" if len(group.rows) == 1 else f"{failed} of {len(group.rows)} cells failed")
    return ", ".join(parts)


def is_noise(row: Row, measure: Measure) -> bool | None:
    """Whether as much comes about by chance in one case of twenty or more; None where nothing was compared."""
    p = row.get(f"{measure.column} p")
    return None if not isinstance(p, (int, float)) else p >= SIGNIFICANT


def _verdict(rows: Sequence[Row], measure: Measure) -> str:
    judged = [(row, noise) for row in rows if (noise := is_noise(row, measure)) is not None]
    if not judged:
        return ""
    quiet = sum(noise for _, noise in judged)
    if quiet == len(judged):
        return "noise"
    directions = {_direction(row, measure) for row, noise in judged if not noise}
    change = directions.pop() if len(directions) == 1 else "change"
    return change if not quiet else f"{change}; noise in {quiet} of {len(judged)} seeds"


def _direction(row: Row, measure: Measure) -> str:
    change = row[f"{measure.column} change"]
    better = isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better
    return "gain" if better else "loss"
