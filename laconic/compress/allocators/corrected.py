"""Allocation by predicted losses, corrected by measured losses, with a fall-back to uniform allocation.

The predicted loss of a matrix is a second-order approximation that assumes that all other matrices are unchanged. In
fact the errors of early blocks propagate through all later blocks, and large errors grow faster than quadratically. If
every matrix loses half of its weights, the first block may cost twice its prediction and the last block hardly more. A
plan that uses the predictions alone therefore compresses the first blocks too much.

`spectrum` and `global` use this correction. First the uniform plan is applied to a copy of the model, and the predicted
losses of each block are multiplied by the ratio of its measured to its predicted loss. Then the resulting plan is
compared with the uniform plan on other calibration rows. Differences within the noise are ignored: correction factors
that may be due to chance are 1, and the uniform plan is chosen only if it is better by more than one standard error.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.compress.allocators.allocator import Allocated, Job, same_everywhere
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.compress.solve_groups import SolveGroup, planned_units
from laconic.compress.solving import replace_layers
from laconic.formats import Format
from laconic.model import Batch, LanguageModel
from laconic.model.task import ModelTask

Loss = Callable[[SolveGroup, Format], float]
"""The predicted loss of a unit in a format, in nats."""

ROWS = 32
"""Calibration rows for measuring blocks; the same number of other rows compares the plans."""
ROWS_OF_ONE = 256
"""The same for tasks with one prediction per row, which need more rows for the same number of predictions."""
SIGNIFICANT = 0.05
"""Probability under chance below which a variation between blocks counts as real."""
LEAST_FACTOR = 1 / 4
"""Smallest correction factor, so that noise in a measurement cannot make a block free."""


class Rows(NamedTuple):
    """Calibration rows in two disjoint parts.

    Args:
        measured: rows to measure the loss of blocks on.
        judging: rows to compare plans on.
    """

    measured: list[Batch]
    judging: list[Batch]


class Tried(NamedTuple):
    """A plan applied to a copy of a model.

    Args:
        lm: the copy.
        losses: predicted loss of every unit in nats per prediction, by name.
    """

    lm: LanguageModel
    losses: dict[str, float]


def split_halves(batches: Sequence[Batch], most: int = ROWS) -> Rows | None:
    """Split the rows into two disjoint halves of at most `most` rows; None if there are fewer than two for each."""
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
    """Apply a plan to a copy of the model, which shares unchanged tensors with the original.

    Args:
        job: the model and its problems.
        plan: the plan.
        loss: the predicted loss of a unit in a format.
    """
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
    """Compute the ratio of measured to predicted loss of each block, relative to the mean over blocks.

    The measured loss of a block is the fall of the KL divergence when only this block gets its original matrices back.
    With few texts it is noisy, so each ratio is shrunk towards the mean (`shrink_estimates`).

    Args:
        job: the budget, the model and its matrices.
        tried: a copy of the model with a plan applied, and the predicted loss of each unit.
        rows: calibration rows that are not used to compare plans.

    Returns:
        The factor of each block, at least `LEAST_FACTOR`; empty if the differences may be due to chance.
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


def shrink_estimates(y: Float[Tensor, " k"], s: Float[Tensor, " k"]) -> tuple[float, Float[Tensor, " k"]]:
    """Shrink several estimates towards their mean, each by its own standard error (empirical Bayes).

    The estimates yᵢ have errors of variance sᵢ² and true values that vary by τ² about a mean μ. With wᵢ = 1 / sᵢ² and
    Q = Σ wᵢ (yᵢ − ȳ)², where ȳ = Σ wᵢ yᵢ / Σ wᵢ,

        τ² = max(0, (Q − (k − 1)) / (Σ wᵢ − Σ wᵢ² / Σ wᵢ)),    μ = Σ yᵢ / (τ² + sᵢ²) / Σ 1 / (τ² + sᵢ²).

    The best estimate of a true value is then μ + (yᵢ − μ) τ² / (τ² + sᵢ²). τ² is taken as 0 unless Q is larger than
    chance makes it in one case of twenty.

    Args:
        y: the estimates.
        s: their standard errors; infinite for an estimate without information.

    Returns:
        μ, and k estimates between it and `y`; all are μ if the estimates differ by chance alone.

    Reference:
        R. DerSimonian, N. Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials 7 (1986), 177-188; B.
        Efron, C. Morris, JASA 68 (1973), 117-130.

    Example:
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.1]))
        (2.0, tensor([1.0050, 2.9950]))
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        (2.0, tensor([2., 2.]))
    """
    s2 = s.square().clamp(min=1e-12 * y.square().mean().item() + 1e-300)
    w = 1 / s2
    around = y - (w * y).sum() / w.sum()
    q = (w * around.square()).sum()
    k = len(y)
    chance = torch.special.gammaincc(torch.tensor((k - 1) / 2, dtype=q.dtype), q / 2) if k > 1 else torch.ones(())
    tau2 = torch.zeros_like(q)
    if chance < SIGNIFICANT:
        tau2 = ((q - (k - 1)) / (w.sum() - w.square().sum() / w.sum())).clamp(min=0)
    v = 1 / (tau2 + s2)
    mean = (v * y).sum() / v.sum()
    return mean.item(), mean + (y - mean) * tau2 / (tau2 + s2)


def block_name(unit: SolveGroup) -> str:
    """Return the path of the block that a unit is in, or the unit's own name if it is outside all blocks."""
    return unit.sites[0].block or unit.name


def measure_divergences(job: Job, tried: Tried, rows: Sequence[Batch]) -> Divergences:
    """Measure KL(original ‖ changed) of each text in `rows`, for the model that a plan was applied to."""
    with evaluating(job.lm), evaluating(tried.lm):
        return KLMetric(job.lm, rows).each(tried.lm)


def _restore_blocks(original: LanguageModel, changed: LanguageModel, units: Sequence[SolveGroup]) -> LanguageModel:
    """A copy of `changed` in which `units` have their original matrices."""
    copy = changed.shallow_copy()
    for name in (name for unit in units for site in unit.sites for name in site.names):
        copy.model.set_submodule(name, original.model.get_submodule(name))
    return copy


ALLOCATED = "allocated"
"""Key in a step's record for the chosen allocation and the held-out KL divergence of both."""

UNIFORM = "uniform"

Factors = Mapping[str, float]
"""Ratio of measured to predicted loss by block, relative to the mean over blocks; missing blocks have the factor 1."""


def allocate_corrected(job: Job, asked: str, planned: Callable[[Factors], Allocated], loss: Loss) -> Allocated:
    """Plan with corrected losses, or take the uniform plan if its held-out KL divergence is clearly lower.

    One half of the calibration rows is used to measure the factors, the other half to compare the two plans. Nothing is
    measured if there are fewer than four rows, or if matrices are pruned already, because the uniform plan then takes a
    different number of bytes.

    Args:
        job: the budget, the model and its matrices.
        asked: the name of the allocation in the record, `spectrum` or `global`.
        planned: makes the plan from the factor of each block.
        loss: the predicted loss of a unit in a format, in nats per prediction.

    Returns:
        The chosen plan; its record says under `ALLOCATED` which of the two it is.
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


def _rows_needed(task: ModelTask) -> int:
    return ROWS_OF_ONE if task.is_sequence_classification or task is ModelTask.EMBEDDING else ROWS


def _has_zeros(job: Job) -> bool:
    return any(job.problems[unit.name].stats.support is not None for unit in job.units)
