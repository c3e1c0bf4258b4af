"""Run a recipe: check it, load the model, calibrate, apply the steps, save and evaluate."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from laconic.allocate import plan_text, plan_to_config
from laconic.calibrate import Calibration, sources
from laconic.calibrate.batching import check_readable, tokenizer_of
from laconic.calibrate.classes import output_places
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate import calibration_sources, check_tasks, evaluate
from laconic.evaluate.tasks import load_corpus
from laconic.model import LanguageModel, load, with_tokenizers
from laconic.model.anatomy.infer import uncalled_stacks
from laconic.model.tokens import check_decoder_start
from laconic.processes import broadcast, on_rank_zero, sync_errors
from laconic.progress import Track, silent
from laconic.recipe.entry import ModelInput
from laconic.recipe.flow import Changes, apply_steps
from laconic.recipe.labels import check_labels
from laconic.recipe.order import check_order
from laconic.recipe.schema import Evaluation, Recipe, key_of, write_recipe
from laconic.report.plots import curves, png
from laconic.store import ExtraFiles, check_output, file_bytes, save

IN_MEMORY = "memory"
"""The source of calibration texts that were passed in memory."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one run.

    Args:
        recipe: the recipe.
        key: a hash of the recipe, in sixteen hexadecimal digits.
        lm: the compressed model.
        output: the folder that was written; None if the model is only in memory.
        seconds: the time from the first check to the saved folder, without the evaluation.
        changes: the results of the steps.
        stacks: the number of blocks in each stack that was compressed, by path.
        idle: the number of blocks in each stack that text input does not use, such as the vision tower of a
            vision-language model. These stacks are not compressed.
        file_bytes: bytes of the saved weights, including everything that was not targeted; None without `output`.
        evaluation: the JSON of `laconic evaluate`, if the recipe asks for it.
    """

    recipe: Recipe
    key: str
    lm: LanguageModel = field(repr=False)
    output: Path | None
    seconds: float
    changes: Changes
    stacks: Mapping[str, int]
    idle: Mapping[str, int]
    file_bytes: int | None
    evaluation: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; `laconic run --json` prints them."""
        return {
            "key": self.key,
            "output": None if self.output is None else str(self.output),
            "seconds": round(self.seconds, 3),
            "bytes": self.changes.nbytes,
            "dense_bytes": self.changes.dense_nbytes,
            "file_bytes": self.file_bytes,
            "predicted_losses": list(self.changes.predicted_losses),
            "untied": list(self.changes.untied),
            "dropped": [{stack: list(blocks) for stack, blocks in step.items()} for step in self.changes.dropped],
            "stacks": dict(self.stacks),
            "idle": dict(self.idle),
            "found": [dict(step) for step in self.changes.found],
            "sites": plan_to_config(self.changes.plan),
            "evaluation": self.evaluation,
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe that was checked and whose model is loaded.

    Args:
        recipe: the recipe to run.
        output: the new folder; None leaves the result in memory.
        lm: the model, in float32.
        data: the calibration data; None if the recipe has none.
        start: the time at which the first check began, from `time.perf_counter`.
    """

    recipe: Recipe
    output: Path | None
    lm: LanguageModel
    data: Calibration | None
    start: float

    def finish(self, lm: LanguageModel, changes: Changes, *, track: Track = silent, device: str = "cpu") -> Record:
        """Save and evaluate the compressed model.

        In a run of several processes, the first process writes and evaluates the folder; all return the same record.

        Args:
            lm: the compressed model.
            changes: the results of the steps.
            track: reports progress.
            device: where the saved model is evaluated.
        """
        recipe, output = self.recipe, self.output
        if output is not None:
            on_rank_zero(save)(lm, output, extra_files(recipe, changes))
        seconds = time.perf_counter() - self.start
        return Record(
            recipe=recipe,
            key=key_of(recipe),
            lm=lm,
            output=output,
            seconds=broadcast(seconds),
            changes=changes,
            stacks={stack.blocks: len(blocks) for stack, blocks in lm.stacks()},
            idle=dict(uncalled_stacks(lm.model)),
            file_bytes=None if output is None else on_rank_zero(file_bytes)(output),
            evaluation=None
            if recipe.evaluate is None or output is None
            else on_rank_zero(_evaluation)(recipe, output, track, device),
        )


@contextmanager
def open_job(
    recipe: Recipe,
    output: Path | None,
    model: ModelInput,
    *,
    corpus: Corpus | None = None,
    places: Sequence[str] | None = None,
    track: Track = silent,
) -> Iterator[Job]:
    """Check a recipe, then load its model and its calibration data.

    Within the block the model is in float32. After the block, a model that the caller had loaded gets its dtypes back.

    Args:
        recipe: the data and the steps.
        output: the new folder; None to write nothing.
        model: the model to use instead of `recipe.model`; it is changed in place.
        corpus: calibration texts to use instead of `recipe.data`.
        places: the names of the steps in error messages; None for `recipe.steps[0].compress` and so on.
        track: reports progress.

    Raises:
        UserError: a part of the recipe is impossible. Most checks run before weights are loaded.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        # Nothing is written until the checks have succeeded in all processes.
        with sync_errors():
            if output is not None:
                output = check_output(output, recipe.model)
            if recipe.data is not None:
                model.check_tokenizer()
            empty = model.skeleton()
            if corpus is None:
                check_recipe(recipe, empty, places=places)
            else:
                texts = corpus
                check_recipe(recipe, empty, places=places, read=lambda source, split: texts)
            data = _calibration(recipe, empty, corpus, track)
            lm = stack.enter_context(model.opened())
        yield Job(recipe=recipe, output=output, lm=lm, data=data, start=start)


def run(recipe: Recipe, output: Path | None = None, *, track: Track = silent, device: str = "cpu") -> Record:
    """Run a recipe and write the compressed model to a folder. After an error there is no folder.

    Args:
        recipe: the model, the data and the steps.
        output: the new folder; None leaves the model in memory.
        track: reports progress.
        device: the device to compute on.

    Raises:
        UserError: a part of the recipe is impossible. Most checks run before weights are loaded.
    """
    model = ModelInput(name=recipe.model, label_order=recipe.label_order, device=device)
    with open_job(recipe, output, model, track=track) as job:
        return job.finish(*apply_steps(job.lm, recipe.steps, job.data), track=track, device=device)


def extra_files(recipe: Recipe, changes: Changes) -> ExtraFiles:
    """The files that are saved with a compressed model: the recipe, the plans and the learning curves."""
    named = recipe.model and recipe.data != IN_MEMORY
    return ExtraFiles(
        recipe=write_recipe(recipe) if named else None,
        plan=tuple(plan_text(plan) for plan in changes.plans if plan),
        files={**changes.files, **pictures_of(changes)},
    )


def _calibration(recipe: Recipe, empty: LanguageModel, texts: Corpus | None, track: Track) -> Calibration | None:
    # The rows are tokenized and checked before weights are loaded.
    if recipe.data is None:
        return None
    data = recipe.sampling.of(empty, texts or sources.read(recipe.data, "train"), track)
    for step in recipe.steps:
        step.check_data(data)
    return data


def check_recipe(
    recipe: Recipe,
    model: LanguageModel,
    *,
    compared: bool = False,
    places: Sequence[str] | None = None,
    read: Callable[..., Corpus] = sources.read,
    rows: Callable[..., Corpus] = load_corpus,
) -> None:
    """Check all parts of a recipe without reading weights.

    Args:
        recipe: the recipe.
        model: the model of the recipe, without weights.
        compared: whether the outputs of the result will be compared with those of the original.
        places: the names of the steps in error messages; None for `recipe.steps[0].compress` and so on.
        read: reads the calibration data.
        rows: reads the rows of tasks.

    Raises:
        UserError: a part of the recipe is impossible for this model; the message begins with its place.
    """
    model = with_tokenizers(model.with_label_order(recipe.label_order))
    if places is None:
        places = [f"recipe.steps[{index}].{step.name}" for index, step in enumerate(recipe.steps)]
    made = check_order(model, recipe.steps, places)
    for index, step in enumerate(recipe.steps):
        if step.needs_data and recipe.data is None:
            raise UserError(
                f"recipe.data is missing, and recipe.steps[{index}].{step.name} needs calibration texts; "
                "name their source, for example builtin:pydoc."
            )
    if recipe.data is not None:
        if recipe.data != IN_MEMORY:
            sources.check_source(recipe.data, "train")
        check_decoder_start(model)
        check_readable(model, read(recipe.data, "train"), recipe.sampling.max_length)
    check_labels(model, recipe.steps, places, recipe.sampling, lambda: read(recipe.data, "train"))
    if compared:
        output_places(made, model)
    if recipe.evaluate is not None:
        if not recipe.evaluate.tasks and not recipe.evaluate.cost:
            raise UserError(
                "recipe.evaluate names nothing to measure; give it tasks, like [perplexity:builtin:pydoc], or cost: "
                "true, or leave it out."
            )
        known = (
            calibration_sources(recipe.model)
            if recipe.data is None
            else (recipe.data, *calibration_sources(recipe.model))
        )
        if recipe.evaluate.tasks:
            tokenizer_of(made)
        check_tasks(
            recipe.evaluate.tasks,
            made,
            compared=compared,
            calibration=known,
            load=partial(rows, limit=recipe.evaluate.limit),
        )


def pictures_of(changes: Changes) -> dict[str, bytes]:
    """The learning curves of every step that trained the model: PNG files, by path."""
    return {
        f"{name}/curves.png": png(curves(history["lines"], name))
        for step in changes.found
        for name, history in step.items()
        if isinstance(history, Mapping) and "lines" in history
    }


def _evaluation(recipe: Recipe, output: Path, track: Track, device: str) -> dict[str, Any]:
    wanted = recipe.evaluate or Evaluation()
    # The saved model is evaluated, not the one in memory.
    saved = load(str(output), device).with_label_order(recipe.label_order)
    return evaluate(saved, wanted.tasks, limit=wanted.limit, cost=wanted.cost, track=track).to_json()
