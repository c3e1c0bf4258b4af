"""Plans by predicted losses, corrected by what blocks cost when they are measured; and uniform where that is better.

What serves every way that compares predicted losses: the same size is tried for every matrix, the predictions of each
block are multiplied by what the block cost there over what was predicted of it, and on rows that this was not measured
on the plan that comes out is compared with the same size everywhere. The predictions are trusted where rows say
nothing: factors that may be chance are 1, and the same size is taken where it is ahead by over a standard error.
"""

from collections.abc import Callable, Mapping

from laconic.compress.ways.trial import ROWS, ROWS_OF_ONE, Loss, carried_out_on_copy, divergences, factors, halves
from laconic.compress.ways.uniform import same_everywhere
from laconic.compress.ways.way import Job, Planned
from laconic.model.task import Task

ALLOCATED = "allocated"
"""Under it a step tells which way was taken, `uniform` or what was asked for, and the KL of either on other rows."""

UNIFORM = "uniform"

Factors = Mapping[str, float]
"""By block, what it costs for each nat that was predicted of it, relative to the others; 1 where there is none."""


def corrected(job: Job, asked: str, planned: Callable[[Factors], Planned], loss: Loss) -> Planned:
    """What `planned` makes of measured factors, or the same size for every matrix where that clearly diverges less.

    What the factors are measured on is part of the calibration rows, and what judges is another. Where there are too
    few of them, or matrices have zeros, so that the same size everywhere leaves another number of bytes, nothing is
    measured.

    Args:
        asked: the way to allocate, as the record calls it.
        planned: a plan by predicted losses that were multiplied by the factor of their block.
        loss: of a unit, what was predicted of the format that it is given, in nats.
    """
    rows = None if job.data is None or _pruned(job) else halves(job.data.batches, _rows_of(job.lm.task))
    if rows is None:
        return planned({})
    same = same_everywhere(job)
    uniform = carried_out_on_copy(job, same, loss)
    found = planned(factors(job, uniform, rows.measured))
    ours = divergences(job, carried_out_on_copy(job, found.plan, loss), rows.judging)
    theirs = divergences(job, uniform, rows.judging)
    measured = {UNIFORM: theirs.mean, asked: ours.mean}
    taken = UNIFORM if theirs.beats(ours) else asked
    told = {ALLOCATED: {"taken": taken, "kl": measured}}
    return found._replace(told=told) if taken == asked else Planned(same, None, told)


def _rows_of(task: Task) -> int:
    return ROWS_OF_ONE if task.is_sequence_classification or task is Task.EMBEDDING else ROWS


def _pruned(job: Job) -> bool:
    return any(job.problems[unit.name].known.support is not None for unit in job.units)
