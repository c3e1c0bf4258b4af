"""What blocks cost when they are measured, against what was predicted of them; and which of two plans costs less.

The predicted loss is of second order, and each matrix is looked at as if all others stayed. Errors of early blocks go
through all that follow, and large ones grow faster than their squares: of a model whose every matrix lost half of its
weights the first block may cost twice what was predicted of it, and the last block hardly more. So a plan that spends
by predictions alone takes too much from the first.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.compress.judge import Judge
from laconic.compress.planning import units_of
from laconic.compress.put import place
from laconic.compress.units import Unit
from laconic.compress.ways.way import Job
from laconic.formats import Format
from laconic.model import Batch, LanguageModel

Loss = Callable[[Unit, Format], float]
"""What was predicted of a unit that is given this format, in nats."""

ROWS = 32
"""Calibration rows that blocks are measured on, and as many others that judge between plans."""
LEAST_FACTOR = 1 / 4
"""Of the mean: a block whose place in the whole cannot be told from noise is not free."""


class Rows(NamedTuple):
    """Calibration rows: to measure blocks on, and to judge plans on."""

    measured: list[Batch]
    judging: list[Batch]


class Tried(NamedTuple):
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


def carried_out_on_copy(job: Job, plan: Plan, loss: Loss) -> Tried:
    """A copy of the model with every unit of `plan` in its place; tensors that stay are shared with the original."""
    copy, losses = job.lm.twin(), {}
    with evaluating(copy):
        for unit in job.track(units_of(plan, job.families), "Trying a plan"):
            method, problem = plan[unit.name], job.problems[unit.name]
            losses[unit.name] = 0.0
            if method is not None:
                whole = method.compress(problem.weight, problem.known)
                place(copy, unit, whole, problem)
                losses[unit.name] = loss(unit, whole)
    return Tried(copy, losses)


def factors(job: Job, tried: Tried, rows: Sequence[Batch]) -> Mapping[str, float]:
    """By block, what it costs in nats for each nat that was predicted of it, relative to the mean of all.

    Measured in place: by how much the divergence on `rows` falls where the block alone is as it was.
    """
    judge = Judge(job.lm, rows)
    blocks: dict[str, list[Unit]] = defaultdict(list)
    for unit in job.units:
        blocks[block_of(unit)].append(unit)
    with evaluating(job.lm), evaluating(tried.lm):
        whole = judge(tried.lm)
        gains = [whole - judge(_restored(job.lm, tried.lm, units)) for units in blocks.values()]
    losses = [sum(tried.losses[unit.name] for unit in units) for units in blocks.values()]
    ratios = [gain / loss if loss > 0 else 0.0 for gain, loss in zip(gains, losses, strict=True)]
    usual = sum(gain for gain in gains if gain > 0) / max(sum(losses), 1e-30)
    if not 0 < usual < float("inf"):
        return {}
    return {block: max(ratio / usual, LEAST_FACTOR) for ratio, block in zip(ratios, blocks, strict=True)}


def block_of(unit: Unit) -> str:
    """What `factors` calls the block of a unit: one outside the blocks is by itself."""
    return unit.sites[0].block or unit.name


def divergence(job: Job, tried: Tried, rows: Sequence[Batch]) -> float:
    """KL(original ‖ changed) on `rows`, nats per prediction."""
    with evaluating(job.lm), evaluating(tried.lm):
        return Judge(job.lm, rows)(tried.lm)


def _restored(original: LanguageModel, changed: LanguageModel, units: Sequence[Unit]) -> LanguageModel:
    """`changed` with the matrices of `units` as they were."""
    copy = changed.twin()
    for name in (name for unit in units for site in unit.sites for name in site.names):
        copy.model.set_submodule(name, original.model.get_submodule(name))
    return copy
