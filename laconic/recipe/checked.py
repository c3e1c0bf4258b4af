"""Everything that is checked before the weights of a model are read, and the choice of the way to run a recipe.

A recipe runs with the whole model in memory, or one block at a time (streamed). If the recipe does not say which, it is
streamed where the whole model would need more memory than is free.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from laconic.calibrate import Calibration, sources
from laconic.calibrate.corpus import Corpus
from laconic.errors import Notice, UserError
from laconic.memory import free_memory, resident_memory
from laconic.model import LanguageModel
from laconic.model.loading import check_parts
from laconic.processes import local_world_size, on_rank_zero
from laconic.progress import Track, silent
from laconic.recipe.checks import check_recipe
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate.disk import check_disk, folder_bytes, free_disk
from laconic.recipe.estimate.shapes import Sizes, sizes_of
from laconic.recipe.estimate.units import format_bytes
from laconic.recipe.schema import Recipe
from laconic.recipe.streaming import check_stream, scratch_folder
from laconic.store import check_output

LARGE = 50_000_000
"""Parameters from which memory and time matter; a smaller model is not streamed unless the recipe says so."""
LARGEST = 1_000_000_000
"""Parameters from which a measurement before the run takes a small part of its time."""


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A recipe that was checked, and whose model is not loaded yet.

    Args:
        recipe: the recipe to run.
        output: the new folder; None leaves the result in memory.
        model: the model of the recipe, or the one that replaces it.
        empty: the same without weights.
        structures: the model before each step and after the last one, without weights.
        data: the calibration data; None if the recipe has none.
        start: the time at which the first check began, from `time.perf_counter`.
        seconds: the time of the checks.
        resident: the memory of the process after the checks; None if it is not known.
    """

    recipe: Recipe
    output: Path | None
    model: ModelInput
    empty: LanguageModel
    structures: Sequence[LanguageModel]
    data: Calibration | None
    start: float
    seconds: float
    resident: int | None

    @cached_property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.empty.model.parameters())

    @property
    def is_large(self) -> bool:
        """Whether memory and time of the run matter."""
        return self.parameters >= LARGE

    @property
    def is_measured(self) -> bool:
        """Whether a streamed run is so long that it is measured on one block before."""
        return self.parameters >= LARGEST

    @cached_property
    def sizes(self) -> Sizes:
        """The memory and the disk space that the run needs, from shapes."""
        return sizes_of(self.empty, self.recipe.steps, self.data)

    @cached_property
    def streams(self) -> bool:
        """Whether the run is streamed."""
        return self._needs_streaming() if self.recipe.stream is None else self.recipe.stream

    def stream_obstacle(self) -> str | None:
        """The reason why no block of the model can run by itself, as a sentence; None if one can."""
        if self.model.loaded is not None:
            return "The model is in memory already; give its folder or hub name."
        if self.output is None:
            return "There is no output, the folder to write to; name one."
        for step, lm in zip(self.recipe.steps, self.structures, strict=False):
            reason = step.stream_obstacle(lm)
            if reason is not None:
                return f"The step '{step.name}' cannot run block by block: {reason}."
        try:
            check_parts(self.recipe.model)
        except UserError as error:
            return str(error)
        return None

    def _needs_streaming(self) -> bool:
        """Whether the model would need more memory than is free, and can be streamed. A notice says so."""
        # The memory of a GPU is another one.
        if not self.is_large or self.output is None or self.model.device != "cpu":
            return False
        return on_rank_zero(self._lacks_memory)(local_world_size())

    def _lacks_memory(self, models: int) -> bool:
        """Whether there is less memory than needed, or an interrupted run has found that.

        Args:
            models: the number of processes of this machine, each of which would hold the model.
        """
        if self.output is not None and scratch_folder(self.recipe, self.output).is_dir():
            # An interrupted run was streamed, and what it finished is used, also if more memory is free by now.
            return True
        free = free_memory()
        needed = models * self.sizes.in_memory
        if free is None or needed <= free or self.stream_obstacle() is not None:
            return False
        warnings.warn(
            f"With the whole model in memory the run needs about {format_bytes(needed)}, and "
            f"{format_bytes(free)} are free, so one block is loaded at a time; --no-stream or stream: false prevents "
            "it.",
            Notice,
            stacklevel=2,
        )
        return True

    def check_disk(self) -> None:
        """Check that the disk has room for what the run writes.

        Raises:
            UserError: less is free.
        """
        if self.output is None:
            return
        if not self.streams:
            # A result is no larger than the dense model, whose size takes no time to compute.
            if self.empty.size()[1] > free_disk(self.output):
                check_disk(self.output, self.sizes.output, 0)
            return
        # What an interrupted run has written need not be written again.
        written = folder_bytes(scratch_folder(self.recipe, self.output))
        check_disk(self.output, self.sizes.output, max(0, self.sizes.scratch - written))


def check_run(
    recipe: Recipe,
    output: Path | None,
    model: ModelInput,
    *,
    corpus: Corpus | None = None,
    places: Sequence[str] | None = None,
    track: Track = silent,
) -> CheckedRun:
    """Check a recipe, and draw its calibration rows, before weights are loaded.

    Args:
        recipe: the data and the steps.
        output: the new folder; None to write nothing.
        model: the model to use instead of `recipe.model`.
        corpus: calibration texts to use instead of `recipe.data`.
        places: the names of the steps in error messages; None for `recipe.steps[0].compress` and so on.
        track: reports progress.

    Raises:
        UserError: a part of the recipe is impossible.
    """
    start = time.perf_counter()
    if output is not None:
        output = check_output(output, recipe.model)
    if recipe.data is not None:
        model.check_tokenizer()
    empty = model.skeleton()
    if corpus is None:
        structures = check_recipe(recipe, empty, places=places)
    else:
        texts = corpus
        structures = check_recipe(recipe, empty, places=places, read=lambda source, split: texts)
    data = _calibration(recipe, empty, corpus, track)
    if recipe.stream:
        check_stream(recipe, output, model.loaded is not None, structures)
    checked = CheckedRun(
        recipe=recipe,
        output=output,
        model=model,
        empty=empty,
        structures=structures,
        data=data,
        start=start,
        seconds=time.perf_counter() - start,
        resident=resident_memory(),
    )
    checked.check_disk()
    return checked


def _calibration(recipe: Recipe, empty: LanguageModel, texts: Corpus | None, track: Track) -> Calibration | None:
    # The rows are tokenized and checked before weights are loaded.
    if recipe.data is None:
        return None
    data = recipe.sampling.of(empty, texts or sources.read(recipe.data, "train"), track)
    for step in recipe.steps:
        step.check_data(data)
    return data
