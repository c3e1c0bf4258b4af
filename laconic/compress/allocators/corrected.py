"""Plans by predicted losses that are corrected by measured ones, with a fall-back to uniform allocation.

The predicted loss of a matrix is a second-order approximation that assumes that all other matrices are unchanged. In
fact the errors of early blocks propagate through all later blocks, and large errors grow faster than quadratically. If
every matrix loses half of its weights, the first block may cost twice its prediction, and the last block about its
prediction. A plan that uses only the predictions therefore compresses the first blocks too much.

First the uniform plan is applied to a copy of the model, and the predicted losses of each block are multiplied by the
ratio of its measured to its predicted loss. Then the resulting plan is compared with the uniform plan on other
calibration rows. Differences within the noise are ignored: correction factors that may be due to chance are 1, and the
uniform plan is chosen only if it is better by more than one standard error.

The copies of a streamed model are streamed too, and run block by block (`laconic.calibrate.shared_runs`).
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.calibrate.shared_runs import SharedRuns
from laconic.calibrate.spill import own_folder
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult
from laconic.compress.kept_choice import choose_once
from laconic.compress.kl_metric import (
    ROWS,
    ROWS_OF_ONE,
    Divergences,
    KLMetric,
    RowSplit,
    own_batches,
    shrink_estimates,
    split_halves,
)
from laconic.compress.replacing import replace_group, solve_matrices
from laconic.compress.solve_groups import SolveGroup, part_of, planned_groups
from laconic.formats import Format
from laconic.model import Batch, LanguageModel

Loss = Callable[[SolveGroup, Format], float]
"""The predicted loss of a matrix that is solved by itself in a format, in nats."""

LEAST_FACTOR = 1 / 4
"""Smallest correction factor, so that noise in a measurement cannot make a block free."""

ALLOCATED = "allocated"
"""Key in a step's record for the chosen allocation and the held-out KL divergence of both."""

UNIFORM = "uniform"

COPIES = "copies"
"""The folder of the copies of a streamed model, and of their hidden states, in its scratch folder."""
MEASURED, JUDGED = "measured", "judged"
"""The folders of the hidden states of the two parts of the calibration rows."""

Factors = Mapping[str, float]
"""Ratio of measured to predicted loss by block, relative to the mean over blocks; missing blocks have the factor 1."""


class CompressedCopy(NamedTuple):
    """A plan applied to a copy of a model.

    Args:
        lm: the copy.
        plan: the plan.
        losses: predicted loss of every group in nats per prediction, by name.
    """

    lm: LanguageModel
    plan: Plan
    losses: Mapping[str, float]


def compress_copy(request: AllocationRequest, plan: Plan, loss: Loss) -> CompressedCopy:
    """Apply a plan to a copy of a model in memory, which shares unchanged tensors with the original.

    Args:
        request: the model and its problems.
        plan: the plan.
        loss: the predicted loss of a matrix in a format.
    """
    copy, losses = request.lm.shallow_copy(), {}
    with evaluating(copy):
        for group in request.track(planned_groups(plan, request.layer_sets), "Compressing a copy"):
            method = plan[group.name]
            losses[group.name] = 0.0
            if method is not None:
                solved = solve_matrices(copy, group, method, request.problems)
                wholes = add_losses(losses, group, solved, loss)
                replace_group(copy, group, wholes, request.problems)
    return CompressedCopy(copy, plan, losses)


def add_losses(losses: dict[str, float], group: SolveGroup, wholes: Iterable[Format], loss: Loss) -> Iterator[Format]:
    """Yield the compressed matrices of a group, and add the predicted loss of each to that of the group.

    Args:
        losses: the losses by the name of the group, changed in place.
        group: the group.
        wholes: its compressed matrices.
        loss: the predicted loss of a matrix in a format.
    """
    for matrix, whole in zip(group.matrices, wholes, strict=True):
        losses[group.name] += loss(matrix, whole)
        yield whole


def rows_to_measure(request: AllocationRequest) -> RowSplit | None:
    """Return the rows to measure blocks on and those to compare plans on.

    Args:
        request: the model, its matrices and its calibration data.

    Returns:
        None if nothing can be measured: there are fewer than four rows, or matrices are pruned already, because the
        uniform plan then takes a different number of bytes.
    """
    pruned = any(site.support is not None for group in request.groups for site in group.sites)
    if request.data is None or pruned:
        return None
    return split_halves(request.data.batches, ROWS_OF_ONE if request.lm.task.predicts_once_per_row else ROWS)


def allocate_corrected(
    request: AllocationRequest,
    allocation: str,
    rows: RowSplit,
    uniform: CompressedCopy,
    make_plan: Callable[[Factors], AllocationResult],
    compress: Callable[[Plan], CompressedCopy],
) -> AllocationResult:
    """Plan with corrected losses, or take the uniform plan if its held-out KL divergence is clearly lower.

    One part of the calibration rows is used to measure the factors, the other part to compare the two plans.

    Args:
        request: the budget, the model and its matrices.
        allocation: its name in the record, `spectrum` or `global`.
        rows: the calibration rows to measure on.
        uniform: the uniform plan, applied to a copy.
        make_plan: makes the plan from the factor of each block.
        compress: applies a plan to another copy.

    Returns:
        The chosen plan; its record says under `ALLOCATED` which of the two it is.
    """
    factors = choose_once(uniform.lm, lambda: dict(measure_factors(request, uniform, rows.measured)))
    _delete_states(request, MEASURED)
    corrected = make_plan(factors)
    copies = [compress(corrected.plan).lm, uniform.lm]
    with evaluating(request.lm, *copies):
        corrected_kl, uniform_kl = _measure_divergences(request, copies, rows.judging, JUDGED)
    use_uniform = uniform_kl.beats(corrected_kl)
    measured = {UNIFORM: uniform_kl.mean, allocation: corrected_kl.mean}
    record = {ALLOCATED: {"taken": UNIFORM if use_uniform else allocation, "kl": measured}}
    return AllocationResult(uniform.plan, None, record) if use_uniform else corrected._replace(record=record)


def measure_factors(request: AllocationRequest, compressed: CompressedCopy, rows: Sequence[Batch]) -> Factors:
    """Measure the ratio of measured to predicted loss of each block, relative to the mean over blocks.

    Args:
        request: the budget, the model and its matrices.
        compressed: a copy of the model with a plan applied, and the predicted loss of each group.
        rows: calibration rows that are not used to compare plans.

    Returns:
        The factor of each block, at least `LEAST_FACTOR`; empty if the differences may be due to chance.
    """
    ratios = measure_ratios(request, compressed, rows)
    return {block: ratio / ratios.mean for block, ratio in ratios.by_block.items()}


class Ratios(NamedTuple):
    """Ratios of measured to predicted losses.

    Args:
        mean: the mean over blocks; 1 if nothing was measured.
        by_block: that of each block, at least `LEAST_FACTOR` times the mean; empty if the differences may be due to
            chance.
    """

    mean: float
    by_block: Mapping[str, float]


def measure_ratios(request: AllocationRequest, compressed: CompressedCopy, rows: Sequence[Batch]) -> Ratios:
    """Measure the ratio of measured to predicted loss of each block.

    The measured loss of a block is the fall of the KL divergence when only this block gets its original matrices back.
    With few texts it is noisy, so each ratio is shrunk towards the mean (`shrink_estimates`).

    Args:
        request: the budget, the model and its matrices.
        compressed: a copy of the model with a plan applied, and the predicted loss of each group.
        rows: calibration rows that are not used to compare plans.
    """
    blocks: dict[str, list[SolveGroup]] = defaultdict(list)
    for group in request.groups:
        blocks[part_of(group)].append(group)
    losses = {block: sum(compressed.losses[group.name] for group in groups) for block, groups in blocks.items()}
    blocks = {block: groups for block, groups in blocks.items() if losses[block] > 0}
    if not blocks:
        return Ratios(1.0, {})
    with evaluating(request.lm, compressed.lm):
        models = with_each_restored(request.lm, compressed.lm, blocks.values())
        compressed_kl, *restored = _measure_divergences(request, models, rows, MEASURED)
    gains = [divergences.gain(compressed_kl) for divergences in restored]
    predicted = torch.tensor([losses[block] for block in blocks], dtype=torch.float64, device="cpu")
    cost = torch.tensor([gain.mean for gain in gains], dtype=torch.float64, device="cpu") / predicted
    error = torch.tensor([gain.error for gain in gains], dtype=torch.float64, device="cpu") / predicted
    mean_ratio, shrunk = shrink_estimates(cost, error)
    if not 0 < mean_ratio < inf:
        return Ratios(1.0, {})
    if not (shrunk != mean_ratio).any():
        return Ratios(mean_ratio, {})
    return Ratios(mean_ratio, dict(zip(blocks, shrunk.clamp(min=LEAST_FACTOR * mean_ratio).tolist(), strict=True)))


def _measure_divergences(
    request: AllocationRequest, models: Iterable[LanguageModel], rows: Sequence[Batch], name: str
) -> list[Divergences]:
    """Measure KL(original ‖ changed) of each text in `rows`, for each of some changed models in eval mode.

    Args:
        request: the original model.
        models: the changed models; of those in memory, one at a time is needed.
        rows: calibration rows.
        name: the name of the folder of the hidden states.
    """
    lm = request.lm
    folder = _states_folder(lm, name)
    if folder is None:
        metric = KLMetric(lm, rows)
        return [metric.each(model) for model in models]
    streamed = list(models)
    runs = SharedRuns([lm, *streamed], own_batches(lm, rows), folder, request.track)
    metric = KLMetric(lm, rows, runs)
    return [metric.each(model) for model in streamed]


def _states_folder(lm: LanguageModel, name: str) -> Path | None:
    return None if lm.loans is None else lm.loans.scratch / COPIES / name


def _delete_states(request: AllocationRequest, name: str) -> None:
    folder = _states_folder(request.lm, name)
    if folder is not None:
        shutil.rmtree(folder / own_folder(), ignore_errors=True)


def with_each_restored(
    original: LanguageModel, changed: LanguageModel, blocks: Iterable[Sequence[SolveGroup]]
) -> Iterator[LanguageModel]:
    """Yield `changed`, and for each block a copy of it in which its groups have their original matrices."""
    yield changed
    for groups in blocks:
        copy, unchanged = changed.shallow_copy(), original.shallow_copy()
        for site in (site for group in groups for site in group.sites):
            for path, module in unchanged.modules_of(site).items():
                copy.model.set_submodule(path, module)
        yield copy
