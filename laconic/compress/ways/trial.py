"""What blocks cost when they are measured, against what was predicted of them; and which of two plans costs less.

The predicted loss is of second order, and each matrix is looked at as if all others stayed. Errors of early blocks go
through all that follow, and large ones grow faster than their squares: of a model whose every matrix lost half of its
weights the first block may cost twice what was predicted of it, and the last block hardly more. So a plan that spends
by predictions alone takes too much from the first.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from laconic.allocate import Plan
from laconic.calibrate import Gram, OutputGram
from laconic.calibrate.passes import evaluating
from laconic.compress.judge import Judge
from laconic.compress.put import place
from laconic.compress.units import Unit
from laconic.compress.ways.way import Job
from laconic.formats import Format
from laconic.model import Batch, LanguageModel
from laconic.numerics.loss import quadratic_loss

ROWS = 32
"""Calibration rows that blocks are measured on, and as many others that judge between plans."""
LEAST_FACTOR = 1 / 4
"""Of the mean: a block whose place in the whole cannot be told from noise is not free."""


class Rows(NamedTuple):
    """Calibration rows: to measure blocks on, and to judge plans on."""

    measured: list[Batch]
    judging: list[Batch]


class Pruned(NamedTuple):
    """A copy of a model in which a plan was carried out, and the predicted loss of every unit, in nats."""

    lm: LanguageModel
    losses: dict[str, float]


def halves(batches: Sequence[Batch]) -> Rows | None:
    """Every second row to each, `ROWS` at most; None where there are fewer than four."""
    found: tuple[list[Batch], list[Batch]] = ([], [])
    for part, half in enumerate(found):
        left = ROWS
        for batch in batches:
            every = torch.arange(part, len(batch["input_ids"]), 2)[:left]
            if len(every):
                half.append({name: tensor[every.to(tensor.device)] for name, tensor in batch.items()})
            left -= len(every)
    counts = [sum(len(batch["input_ids"]) for batch in half) for half in found]
    return Rows(*found) if min(counts) >= 2 else None


def carried_out_on_copy(job: Job, plan: Plan) -> Pruned:
    """A copy of the model with every unit of `plan` in its place; tensors that stay are shared with the original."""
    copy, losses = job.lm.twin(), {}
    with evaluating(copy):
        for unit in job.track(job.units, "Trying a plan"):
            method, problem = plan[unit.name], job.problems[unit.name]
            losses[unit.name] = 0.0
            if method is not None:
                whole = method.compress(problem.weight, problem.known)
                place(copy, unit, whole, problem)
                losses[unit.name] = _loss(whole, job, unit)
    return Pruned(copy, losses)


def factors(job: Job, pruned: Pruned, rows: Sequence[Batch]) -> Mapping[str, float]:
    """By unit, what its block costs in nats for each nat that was predicted of it.

    Measured in place: by how much the divergence on `rows` falls where the block alone is as it was.
    """
    judge = Judge(job.lm, rows)
    blocks: dict[str, list[Unit]] = defaultdict(list)
    for unit in job.units:
        blocks[unit.sites[0].block or unit.name].append(unit)
    with evaluating(job.lm), evaluating(pruned.lm):
        whole = judge(pruned.lm)
        gains = [whole - judge(_restored(job.lm, pruned.lm, units)) for units in blocks.values()]
    losses = [sum(pruned.losses[unit.name] for unit in units) for units in blocks.values()]
    ratios = [gain / loss if loss > 0 else 0.0 for gain, loss in zip(gains, losses, strict=True)]
    usual = sum(gain for gain in gains if gain > 0) / max(sum(losses), 1e-30)
    if not 0 < usual < float("inf"):
        return {unit.name: 1.0 for unit in job.units}
    return {
        unit.name: max(ratio / usual, LEAST_FACTOR)
        for ratio, units in zip(ratios, blocks.values(), strict=True)
        for unit in units
    }


def divergence(job: Job, pruned: Pruned, rows: Sequence[Batch]) -> float:
    """KL(original ‖ pruned) on `rows`, nats per prediction."""
    with evaluating(job.lm), evaluating(pruned.lm):
        return Judge(job.lm, rows)(pruned.lm)


def _restored(original: LanguageModel, pruned: LanguageModel, units: Sequence[Unit]) -> LanguageModel:
    """`pruned` with the matrices of `units` as they were."""
    copy = pruned.twin()
    for name in (name for unit in units for site in unit.sites for name in site.names):
        copy.model.set_submodule(name, original.model.get_submodule(name))
    return copy


def _loss(whole: Format, job: Job, unit: Unit) -> float:
    problem = job.problems[unit.name]
    error = problem.weight.double() - whole.dense().double()
    return quadratic_loss(error, problem.known[OutputGram].matrix, problem.known[Gram].matrix)
