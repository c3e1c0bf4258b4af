"""An estimate of the time, the memory and the disk space of a recipe, streamed and in memory."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from laconic.cache import DiskCache
from laconic.calibrate import GradientStatistic
from laconic.calibrate.anchor import count_rows
from laconic.calibrate.passes import describe_machine
from laconic.compress import Compress
from laconic.compress.kl_metric import ROWS
from laconic.errors import Notice, UserError
from laconic.processes import is_rank_zero, on_rank_zero
from laconic.recipe.checked import CheckedRun
from laconic.recipe.estimate.copies import copies_of
from laconic.recipe.estimate.trial import Trial, run_trial
from laconic.recipe.estimate.units import format_bytes, format_seconds
from laconic.recipe.streaming import content_key
from laconic.system import processor

MEASURED = DiskCache("trials", ".json")
PASSES = 4
"""Passes over the model that compare two plans, beside one for each block."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one way to run a recipe.

    Args:
        seconds: from the first check to the saved folder; None if they were not measured.
        memory: largest resident memory of the process in bytes; None if it is not known.
        scratch: bytes of files that are removed at the end.
        output: bytes of the saved weights.
    """

    seconds: float | None
    memory: int | None
    scratch: int
    output: int

    def __str__(self) -> str:
        named = [
            None if self.seconds is None else format_seconds(self.seconds),
            None if self.memory is None else f"{format_bytes(self.memory)} of memory",
            f"{format_bytes(self.scratch)} of scratch files" if self.scratch else None,
            f"{format_bytes(self.output)} for the result",
        ]
        *parts, last = filter(None, named)
        return f"{', '.join(parts)} and {last}" if parts else last


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The costs of a recipe.

    Args:
        in_memory: with the whole model in memory.
        streamed: with one block at a time; None if this is impossible.
        unmeasured: a sentence with the reason why the time was not measured; None if it was.
        streams: whether the run is streamed.
    """

    in_memory: Costs
    streamed: Costs | None
    unmeasured: str | None
    streams: bool

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return asdict(self)


def estimate(checked: CheckedRun) -> Estimate:
    """Estimate the costs of a recipe. A run on one block of each kind measures the time, if it can be streamed.

    Of several processes, the first one measures.

    Args:
        checked: the recipe, which was checked.

    Raises:
        UserError: as the run itself.
    """
    # This depends on the number of processes, and the first one measures as if it were alone.
    return on_rank_zero(_estimate)(checked, checked.streams)


def _estimate(checked: CheckedRun, streams: bool) -> Estimate:
    obstacle = checked.stream_obstacle()
    trial, reason = (None, obstacle) if obstacle is not None else _measure(checked)
    return Estimate(
        in_memory=_in_memory(checked, trial),
        streamed=None if obstacle is not None else _streamed(checked, trial),
        unmeasured=reason,
        streams=streams,
    )


def announce(checked: CheckedRun) -> None:
    """Give a notice of what the run of a large model will cost.

    The time is that of a dry run of the same recipe. If there was none, it is measured before a streamed run of one of
    the largest models, and otherwise unknown, because measuring it would take a good part of the run.

    Args:
        checked: the recipe, which was checked.
    """
    if not checked.is_large or not is_rank_zero():
        return
    reason = checked.stream_obstacle()
    trial: Trial | None = None
    if reason is None and checked.streams and checked.is_measured:
        trial, reason = _measure(checked)
    elif reason is None:
        trial = _remembered(checked)
    costs = _streamed(checked, trial) if checked.streams else _in_memory(checked, trial)
    # A dry run measures nothing where no block can run by itself, and fails where the measurement has failed.
    hint = " (--dry-run measures the time)" if trial is None and reason is None else ""
    warnings.warn(f"The run takes about {costs}{hint}.", Notice, stacklevel=2)


def _streamed(checked: CheckedRun, trial: Trial | None) -> Costs:
    return Costs(
        seconds=None if trial is None else checked.seconds + trial.seconds + _seconds_of_copies(checked, trial),
        memory=None if trial is None or checked.model.device != "cpu" else trial.memory,
        scratch=checked.sizes.scratch,
        output=checked.sizes.output,
    )


def _in_memory(checked: CheckedRun, trial: Trial | None) -> Costs:
    # Beyond the memory of the program itself.
    resident = checked.resident if checked.model.device == "cpu" else None
    return Costs(
        seconds=None if trial is None else checked.seconds + _seconds_in_memory(checked, trial),
        memory=None if resident is None else resident + checked.sizes.in_memory,
        scratch=0,
        output=checked.sizes.output,
    )


def _measure(checked: CheckedRun) -> tuple[Trial | None, str | None]:
    """The trial of a recipe: from the cache, if the same one was measured before on this machine.

    Returns:
        The trial, or None and the reason why it failed.
    """
    key = _key(checked)
    trial = _recall(key)
    if trial is None:
        assert checked.output is not None, "a recipe without output cannot be streamed"
        try:
            trial = run_trial(checked.recipe, checked.model, checked.empty, checked.data, checked.output)
        except UserError as error:
            return None, str(error)
        content = json.dumps(asdict(trial))
        MEASURED.write(key, lambda path: path.write_text(content, encoding="utf-8"))
    return trial, None


def _remembered(checked: CheckedRun) -> Trial | None:
    """The trial of a dry run of the same recipe; None if there was none, or if the files of the model are damaged."""
    try:
        return _recall(_key(checked))
    except UserError:
        return None


def _recall(key: str) -> Trial | None:
    return MEASURED.read(key, lambda path: Trial(**json.loads(path.read_text(encoding="utf-8"))))


def _key(checked: CheckedRun) -> str:
    machine = describe_machine(torch.device(checked.model.device))
    parts = [content_key(replace(checked.recipe, stream=None), checked.data), machine, processor()]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _seconds_of_copies(checked: CheckedRun, trial: Trial) -> float:
    """The time that more blocks than those of the trial add to the measurement of copies."""
    batches = [] if checked.data is None else checked.data.batches
    found = [copies_of(checked.empty, step, batches) for step in checked.recipe.steps]
    return sum(copies.extra_seconds(trial.row_seconds, trial.head_seconds) for copies in found if copies is not None)


def _seconds_in_memory(checked: CheckedRun, trial: Trial) -> float:
    """The time of a run in memory, which reads the weights once, and in which some steps do more, others less."""
    seconds = trial.seconds - trial.reading
    if checked.data is None:
        return seconds
    rows = count_rows(checked.data.batches)
    for step in checked.recipe.steps:
        if not isinstance(step, Compress) or not step.needs:
            continue
        if not any(issubclass(kind, GradientStatistic) for kind in step.needs):
            # A pass over the whole model computes logits that the statistics of inputs do not need.
            seconds += rows * trial.head_seconds
        if step.plan is None and step.allocate != "uniform":
            # Streamed, blocks are measured for the plan, and again for the solution unless theirs serve every size. In
            # memory, the predictions of the plan are compared with the divergence of each block, on half of the rows.
            twice = not all(method.caches_solution for method in step.methods)
            seconds -= trial.solving / 2 / len(checked.recipe.steps) if twice else 0
            blocks = sum(len(blocks) for _, blocks in checked.empty.stacks())
            seconds += (blocks + PASSES) * min(ROWS, rows // 2) * trial.row_seconds
    return seconds
