"""Measured losses of blocks against predicted ones, and the held-out KL of a plan that was tried on a copy.

The predicted loss is of second order, and takes each matrix as if all others stayed. Errors of early blocks go
through all that follow, and large ones grow faster than their squares: of a model whose every matrix lost half of its
weights the first block may cost twice what was predicted of it, and the last block hardly more. So a plan that spends
by predictions alone takes too much from the first.

Allocation by predicted losses, corrected by measured losses, with a fall-back to uniform allocation.

Used by `spectrum` and by `global`, whose plans rest on predicted losses. The uniform plan is tried first. Each block's
predictions are multiplied by the ratio of its measured loss to its predicted loss. On other calibration rows the
resulting plan is then compared with the uniform one. The predictions are trusted where the rows cannot tell: factors
that may be due to chance are 1, and uniform is taken only where it is ahead by more than one standard error.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.compress.allocators.allocator import Allocated, Job, same_everywhere
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.compress.solve_groups import SolveGroup, planned_units
from laconic.compress.solving import replace_layers
from laconic.formats import Format
from laconic.model import Batch, LanguageModel
from laconic.model.task import Task
from laconic.numerics.shrinkage import shrink_estimates

Loss = Callable[[SolveGroup, Format], float]
"""The predicted loss of a unit in a format, in nats."""

ROWS = 32
"""Calibration rows that blocks are measured on, and as many others that judge between plans."""
ROWS_OF_ONE = 256
"""The same for tasks with one prediction a row, which need more rows for as many predictions."""
LEAST_FACTOR = 1 / 4
"""Of the mean: a block whose place in the whole cannot be record from noise is not free."""


class Rows(NamedTuple):
    """Calibration rows: to measure blocks on, and to judge plans on."""

    measured: list[Batch]
    judging: list[Batch]


class Tried(NamedTuple):
    """A copy of a model in which a plan was carried out, and the predicted loss of every unit, in nats."""

    lm: LanguageModel
    losses: dict[str, float]


def split_halves(batches: Sequence[Batch], most: int = ROWS) -> Rows | None:
    """Split the rows into two disjoint halves of at most `most` rows; None where there are fewer than four."""
    found: tuple[list[Batch], list[Batch]] = ([], [])
    for part, half in enumerate(found):
        left = most
        for batch in batches:
            every = torch.arange(part, len(batch["input_ids"]), 2)[:left]
            if len(every):
                half.append({name: tensor[every.to(tensor.device)] for name, tensor in batch.items()})
            left -= len(every)
    counts = [sum(len(batch["input_ids"]) for batch in half) for half in found]
    return Rows(*found) if min(counts) >= 2 else None


def compress_copy(job: Job, plan: Plan, loss: Loss) -> Tried:
    """Compress a copy of the model by `plan`; tensors that do not change are shared with the original."""
    copy, losses = job.lm.shallow_copy(), {}
    with evaluating(copy):
        for unit in job.track(planned_units(plan, job.groups), "Trying a plan"):
            method, problem = plan[unit.name], job.problems[unit.name]
            losses[unit.name] = 0.0
            if method is not None:
                whole = method.compress(problem.weight, problem.stats)
                replace_layers(copy, unit, whole, problem)
                losses[unit.name] = loss(unit, whole)
    return Tried(copy, losses)


def factors(job: Job, tried: Tried, rows: Sequence[Batch]) -> Mapping[str, float]:
    """Ratio of measured to predicted loss of each block, relative to the mean over blocks.

    A block's measured loss is the fall of the KL on `rows` when that block alone gets its original matrices back. Few
    texts measure it poorly, so each ratio is shrunk towards the mean (`laconic.numerics.shrinkage`).

    Args:
        job: the budget, the model and its matrices.
        tried: the model with a plan carried out, and the predicted loss of each unit.
        rows: calibration rows that do not compare plans.

    Returns:
        The factor of each block, at least `LEAST_FACTOR`; empty where the differences may be due to chance.
    """
    metric = KLMetric(job.lm, rows)
    blocks: dict[str, list[SolveGroup]] = defaultdict(list)
    for unit in job.units:
        blocks[block_name(unit)].append(unit)
    losses = {block: sum(tried.losses[unit.name] for unit in units) for block, units in blocks.items()}
    blocks = {block: units for block, units in blocks.items() if losses[block] > 0}
    with evaluating(job.lm), evaluating(tried.lm):
        whole = metric.each(tried.lm)
        gains = [metric.each(_restore_blocks(job.lm, tried.lm, units)).gain(whole) for units in blocks.values()]
    predicted = torch.tensor([losses[block] for block in blocks], dtype=torch.float64)
    cost = torch.tensor([gain.mean for gain in gains], dtype=torch.float64) / predicted
    error = torch.tensor([gain.error for gain in gains], dtype=torch.float64) / predicted
    usual, drawn = shrink_estimates(cost, error)
    if not 0 < usual < inf or not (drawn != usual).any():
        return {}
    return dict(zip(blocks, (drawn / usual).clamp(min=LEAST_FACTOR).tolist(), strict=True))


def block_name(unit: SolveGroup) -> str:
    """The name of the block that a unit is in; of a unit outside all blocks, its own name."""
    return unit.sites[0].block or unit.name


def measure_divergences(job: Job, tried: Tried, rows: Sequence[Batch]) -> Divergences:
    """KL(original ‖ changed) of each text in `rows`."""
    with evaluating(job.lm), evaluating(tried.lm):
        return KLMetric(job.lm, rows).each(tried.lm)


def _restore_blocks(original: LanguageModel, changed: LanguageModel, units: Sequence[SolveGroup]) -> LanguageModel:
    """A copy of `changed` in which `units` have their original matrices."""
    copy = changed.shallow_copy()
    for name in (name for unit in units for site in unit.sites for name in site.names):
        copy.model.set_submodule(name, original.model.get_submodule(name))
    return copy


ALLOCATED = "allocated"
"""Key of a step's record: the allocation that was taken, and the held-out KL of it and of the other one."""

UNIFORM = "uniform"

Factors = Mapping[str, float]
"""Ratio of measured to predicted loss of each block, relative to the mean over blocks; 1 for a block without one."""


def allocate_corrected(job: Job, asked: str, planned: Callable[[Factors], Allocated], loss: Loss) -> Allocated:
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
    rows = None if job.data is None or _has_zeros(job) else split_halves(job.data.batches, _rows_needed(job.lm.task))
    if rows is None:
        return planned({})
    same = same_everywhere(job)
    uniform = compress_copy(job, same, loss)
    found = planned(factors(job, uniform, rows.measured))
    ours = measure_divergences(job, compress_copy(job, found.plan, loss), rows.judging)
    theirs = measure_divergences(job, uniform, rows.judging)
    measured = {UNIFORM: theirs.mean, asked: ours.mean}
    taken = UNIFORM if theirs.beats(ours) else asked
    record = {ALLOCATED: {"taken": taken, "kl": measured}}
    return found._replace(record=record) if taken == asked else Allocated(same, None, record)


def _rows_needed(task: Task) -> int:
    return ROWS_OF_ONE if task.is_sequence_classification or task is Task.EMBEDDING else ROWS


def _has_zeros(job: Job) -> bool:
    return any(job.problems[unit.name].stats.support is not None for unit in job.units)
