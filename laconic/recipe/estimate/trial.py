"""Run a recipe on one block of each kind, streamed, to learn what the whole model will take.

The steps, the calibration rows, the embedding, the head and the folder that is written are those of the whole run. The
time of a block counts as often as the model has blocks of its kind.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import count_rows
from laconic.calibrate.passes import evaluating
from laconic.compress import Step
from laconic.errors import Notice, UserError
from laconic.memory import sampled_peak
from laconic.model import Batch, LanguageModel, predict
from laconic.model.loading import load_streamed
from laconic.recipe.checks import check_order
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate.stand_ins import trial_steps
from laconic.recipe.estimate.stopwatch import BlockTimer
from laconic.recipe.estimate.trial_folder import trial_folder
from laconic.recipe.estimate.truncation import Representatives, truncate
from laconic.recipe.flow import apply_steps
from laconic.recipe.schema import Recipe
from laconic.store.part_structures import PartStructures
from laconic.store.streamed import save_streamed

ROWS = 2
"""Rows of the pass that measures the head. The logits of a whole batch might need more memory than the run."""
READINGS_TO_WRITE = 2
"""Passes of the whole model, block by block from disk, that check its result: one as saved, and one as meant."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The cost of the whole model, from a run on one block of each kind.

    Args:
        seconds: the time of the streamed run.
        memory: its largest resident memory in bytes; None if the system does not say.
        reading: the part of the time in which blocks are read from disk once more than a model in memory needs.
        solving: the part of it in which the steps measure and compress blocks.
        row_seconds: the time of a forward pass of the whole model over one calibration row; 0 without rows.
        head_seconds: the part of it after the last block.
    """

    seconds: float
    memory: int | None
    reading: float
    solving: float
    row_seconds: float
    head_seconds: float


def run_trial(recipe: Recipe, model: ModelInput, empty: LanguageModel, data: Calibration | None, output: Path) -> Trial:
    """Run the steps of a recipe on one block of each kind, and write the result to a folder that is removed again.

    Args:
        recipe: a recipe that can be streamed.
        model: the model.
        empty: the same without weights, with its tokenizers.
        data: the calibration data; None if there are none.
        output: the folder of the whole run. That of the trial lies beside it.

    Raises:
        UserError: as the run itself; or a step names a block that the model of the trial does not have.
    """
    start = time.perf_counter()
    _check_steps(empty, trial_steps(empty, recipe.steps, BlockTimer({})))
    with trial_folder(output) as folder, _without_notices():
        with sampled_peak() as peak:
            scratch = folder / "scratch"
            lm = load_streamed(
                recipe.model,
                scratch,
                structures=PartStructures(),
                device=model.device,
                tokenizers=(empty.tokenizer, empty.target_tokenizer),
            )
            loading = time.perf_counter() - start
            kept = truncate(lm)
            lm, timer = model.with_inputs(lm), BlockTimer(kept.counts)
            timed = None if data is None else replace(data, track=timer, corpus=None)
            reading = _time_reading(lm, kept)
            lm, _ = apply_steps(lm, trial_steps(empty, recipe.steps, timer), timed)
            solving = timer.blocks
            save_streamed(lm, folder / "result", track=timer)
            seconds = time.perf_counter() - start
        blocks, head, rows = (0.0, 0.0, 1) if data is None else _time_pass(lm, kept, data.batches)
    runs = READINGS_TO_WRITE * timer.left + sum(1 for step in recipe.steps if step.needs_data)
    further = timer.further + runs * (reading - _once(reading, kept)) + loading * kept.left_out / _all(kept)
    return Trial(
        seconds=seconds + further,
        memory=peak.bytes,
        reading=(runs + 1) * reading,
        solving=solving,
        row_seconds=(blocks + head) / rows,
        head_seconds=head / rows,
    )


def _check_steps(lm: LanguageModel, steps: Sequence[Step]) -> None:
    """Check that the steps can run on a model of one block of each kind, before anything is measured.

    Args:
        lm: the whole model without weights; it is not changed.
        steps: the steps.

    Raises:
        UserError: a step names a block that such a model does not have.
    """
    small = lm.shallow_copy()
    try:
        truncate(small)
        check_order(small, steps, [step.name for step in steps])
    except UserError as error:
        raise UserError(f"The steps cannot run on a model that has only one block of each kind: {error}") from error


def _all(kept: Representatives) -> int:
    return sum(kept.counts.values())


def _once(reading: float, kept: Representatives) -> float:
    """The part of the time for reading all blocks that those of the trial take."""
    return reading * len(kept.counts) / _all(kept)


def _time_reading(lm: LanguageModel, kept: Representatives) -> float:
    """The seconds in which all blocks of the whole model are read once."""
    seconds = 0.0
    for path, count in kept.counts.items():
        start = time.perf_counter()
        with lm.on_loan(path):
            seconds += count * (time.perf_counter() - start)
    return seconds


@torch.no_grad()
def _time_pass(lm: LanguageModel, kept: Representatives, batches: Sequence[Batch]) -> tuple[float, float, int]:
    """Time a pass over a few calibration rows.

    Returns:
        The seconds of all blocks of the whole model, those of everything else, and the number of rows.
    """
    batch = {name: tensor[:ROWS].to(lm.device) for name, tensor in batches[0].items()}
    with lm.loaned_on_call(keep=True), evaluating(lm), ExitStack() as hooks:
        # The first pass reads the weights.
        predict(lm, batch)
        spent = {path: _Seconds() for path in kept.counts}
        for path, seconds in spent.items():
            hooks.enter_context(seconds.measure(lm.model.get_submodule(path)))
        start = time.perf_counter()
        predict(lm, batch)
        whole = time.perf_counter() - start
    inside = sum(seconds.total for seconds in spent.values())
    blocks = sum(kept.counts[path] * seconds.total for path, seconds in spent.items())
    return blocks, max(0.0, whole - inside), count_rows([batch])


class _Seconds:
    """The time that a module takes."""

    def __init__(self) -> None:
        self.total = 0.0
        self._start = 0.0

    @contextmanager
    def measure(self, module: nn.Module) -> Iterator[None]:
        """Measure the calls of a module within the block."""

        def begin(*_: Any) -> None:
            self._start = time.perf_counter()

        def end(*_: Any) -> None:
            self.total += time.perf_counter() - self._start

        handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _without_notices() -> Iterator[None]:
    """Within the block no notice is given: the run itself gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        yield
