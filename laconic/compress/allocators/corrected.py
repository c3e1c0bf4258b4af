"""Allocation by predicted losses, corrected by measured losses, with a fall-back to uniform allocation.

Used by `spectrum` and by `global`, whose plans rest on predicted losses. The uniform plan is tried first. Each block's
predictions are multiplied by the ratio of its measured loss to its predicted loss. On other calibration rows the
resulting plan is then compared with the uniform one. The predictions are trusted where the rows cannot tell: factors
that may be due to chance are 1, and uniform is taken only where it is ahead by more than one standard error.
"""

from collections.abc import Callable, Mapping

from laconic.compress.allocators.allocator import Job, Planned
from laconic.compress.allocators.trial import ROWS, ROWS_OF_ONE, Loss, carried_out_on_copy, divergences, factors, halves
from laconic.compress.allocators.uniform import same_everywhere
from laconic.model.task import Task

ALLOCATED = "allocated"
"""Key of a step's record: the allocation that was taken, and the held-out KL of it and of the other one."""

UNIFORM = "uniform"

Factors = Mapping[str, float]
"""Ratio of measured to predicted loss of each block, relative to the mean over blocks; 1 for a block without one."""


def corrected(job: Job, asked: str, planned: Callable[[Factors], Planned], loss: Loss) -> Planned:
    """The allocation plan by corrected losses, or the uniform plan where its held-out KL is clearly lower.

    One half of the calibration rows measures the factors, and the other half compares the two plans. Nothing is
    measured where there are fewer than four rows. Nor is it where matrices have zeros already, because the uniform plan
    then takes another number of bytes.

    Args:
        job: the budget, the model and its matrices.
        asked: the name of the allocation in the record, `spectrum` or `global`.
        planned: makes the plan from the factor of each block.
        loss: the predicted loss of a unit in a format, in nats.

    Returns:
        The plan, and under `ALLOCATED` which of the two it is.
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
