"""What the difference of a group to the original is worth: a change, noise, or too few rows to tell."""

from collections.abc import Sequence

from laconic.evaluate.paired import Verdict, verdict
from laconic.report.study.groups import Group
from laconic.report.study.measures import Measure
from laconic.report.study.results_table import DONE, Row


def remark(group: Group, measures: Sequence[Measure]) -> str:
    """In words, by measure where there are several; "" where nothing was compared."""
    if group.baseline:
        return "the original"
    found = [(measure, _in_words(group.done, measure)) for measure in measures]
    said = [(measure, words) for measure, words in found if words]
    different = {words for _, words in said}
    if len(different) == 1:
        parts = [f"{next(iter(different))} (all {len(said)} tasks)"] if len(said) > 1 else list(different)
    else:
        parts = [f"{measure.name}: {words}" for measure, words in said]
    failed = sum(row["state"] != DONE for row in group.rows)
    if failed:
        parts.append("failed" if len(group.rows) == 1 else f"{failed} of {len(group.rows)} cells failed")
    return ", ".join(parts)


def verdict_of(row: Row, measure: Measure) -> Verdict | None:
    """What the change of a cell says; None where nothing was compared."""
    p, least = row.get(f"{measure.column} p"), row.get(f"{measure.column} least p")
    if not isinstance(p, (int, float)):
        return None
    return verdict(p, least if isinstance(least, (int, float)) else 0.0)


def _in_words(rows: Sequence[Row], measure: Measure) -> str:
    judged = [(row, found) for row in rows if (found := verdict_of(row, measure)) is not None]
    counts = {one: sum(found is one for _, found in judged) for one in Verdict}
    directions = {_direction(row, measure) for row, found in judged if found is Verdict.CHANGE}
    words = {**{one: one.value for one in Verdict}, Verdict.CHANGE: "change"}
    if len(directions) == 1:
        words[Verdict.CHANGE] = directions.pop()
    there = [one for one in Verdict if counts[one]]
    others = (f"{words[one]} in {counts[one]} of {len(judged)} seeds" for one in there[1:])
    return "; ".join([words[there[0]], *others]) if there else ""


def _direction(row: Row, measure: Measure) -> str:
    change = row[f"{measure.column} change"]
    better = isinstance(change, (int, float)) and (change > 0) == measure.higher_is_better
    return "gain" if better else "loss"
