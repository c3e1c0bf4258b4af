"""The whole flow in one function: check, load, calibrate, apply the steps, save, evaluate."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from laconic.allocate import plan_text, plan_to_config
from laconic.calibrate import Calibration, corpus
from laconic.calibrate.batching import check_readable, tokenizer_of
from laconic.calibrate.classes import output_places
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate import calibration_sources, check_tasks, evaluate
from laconic.evaluate.tasks import load_corpus
from laconic.model import LanguageModel, load, with_tokenizers
from laconic.model.structure import uncalled_stacks
from laconic.model.tokens import check_decoder_start
from laconic.processes import from_first, on_rank_zero, sync_errors
from laconic.progress import Track, silent
from laconic.recipe.flow import Changes, apply_steps
from laconic.recipe.labels import check_labels
from laconic.recipe.order import check_order
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.write import key_of, write_recipe
from laconic.report.plots import curves, png
from laconic.store import Beside, check_output, file_bytes, save, skeleton


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run made.

    key:        names the recipe.
    seconds:    from the first check to the saved folder; evaluation not counted.
    stacks:     the lists of blocks that were looked at, by path, each with its blocks.
    idle:       and those that no run over text calls, which stay as they are: the tower of a vision-language model.
    file_bytes: of the saved weights, everything that was not targeted included.
    evaluation: the JSON of `laconic evaluate`, when the recipe asks for it.
    """

    recipe: Recipe
    key: str
    output: Path
    seconds: float
    changes: Changes
    stacks: Mapping[str, int]
    idle: Mapping[str, int]
    file_bytes: int
    evaluation: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `laconic run --json` prints them."""
        return {
            "key": self.key,
            "output": str(self.output),
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


def run(recipe: Recipe, output: Path, *, track: Track = silent, device: str = "cpu") -> Record:
    """Compress `recipe.model` into the folder `output`, which is written whole or not at all.

    Of several processes the first writes it, and judges what it wrote; all return the same record.

    Raises:
        UserError: anything in the recipe that cannot be done; what can be checked is checked before weights are loaded.
    """
    start = time.perf_counter()
    # Nothing is written before all have found that it can be.
    with sync_errors():
        output = check(recipe, output)
        lm, data = _loaded(recipe, track, device)
    lm, changes = apply_steps(lm, recipe.steps, data)
    plans = tuple(plan_text(plan) for plan in changes.plans if plan)
    beside = Beside(recipe=write_recipe(recipe), plan=plans, files={**changes.files, **pictures_of(changes)})
    on_rank_zero(save)(lm, output, beside)
    seconds = time.perf_counter() - start
    return Record(
        recipe=recipe,
        key=key_of(recipe),
        output=output,
        seconds=from_first(seconds),
        changes=changes,
        stacks={stack.blocks: len(blocks) for stack, blocks in lm.stacks()},
        idle=dict(uncalled_stacks(lm.model)),
        file_bytes=on_rank_zero(file_bytes)(output),
        evaluation=None if recipe.evaluate is None else on_rank_zero(_evaluation)(recipe, output, track, device),
    )


def _loaded(recipe: Recipe, track: Track, device: str) -> tuple[LanguageModel, Calibration | None]:
    # What the rows are to the model and to the steps is found before the weights are loaded.
    data = None
    if recipe.data is not None:
        empty = with_tokenizers(skeleton(recipe.model)).with_label_order(recipe.label_order)
        data = recipe.sampling.of(empty, corpus.read(recipe.data, "train"), track)
        for step in recipe.steps:
            step.check_data(data)
    return load(recipe.model, device).with_label_order(recipe.label_order), data


def check(recipe: Recipe, output: Path) -> Path:
    """The folder to write, once all that can be known before weights are loaded is known to be right.

    Raises:
        UserError: `output` cannot be made, or something in `recipe` cannot be done.
    """
    output = check_output(output, recipe.model)
    check_recipe(recipe, skeleton(recipe.model))
    return output


def check_recipe(
    recipe: Recipe,
    model: LanguageModel,
    *,
    compared: bool = False,
    read: Callable[..., Corpus] = corpus.read,
    rows: Callable[..., Corpus] = load_corpus,
) -> None:
    """Raise UserError where something in `recipe` cannot be done with `model`, which is its own without weights.

    `compared`: what it makes is judged beside the original. `read` and `rows` read its data and those of its tasks.
    """
    model = with_tokenizers(model.with_label_order(recipe.label_order))
    places = [f"recipe.steps[{index}].{step.name}" for index, step in enumerate(recipe.steps)]
    made = check_order(model, recipe.steps, places)
    for index, step in enumerate(recipe.steps):
        if step.needs_data and recipe.data is None:
            raise UserError(
                f"recipe.data is missing, and recipe.steps[{index}].{step.name} needs calibration texts; "
                "name their source, for example builtin:pydoc."
            )
    if recipe.data is not None:
        corpus.check_source(recipe.data, "train")
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
    """The picture of every training."""
    return {
        f"{name}/curves.png": png(curves(history["lines"], name))
        for step in changes.found
        for name, history in step.items()
        if isinstance(history, Mapping) and "lines" in history
    }


def _evaluation(recipe: Recipe, output: Path, track: Track, device: str) -> dict[str, Any]:
    wanted = recipe.evaluate or Evaluation()
    # What was saved is judged, not what is in memory.
    saved = load(str(output), device).with_label_order(recipe.label_order)
    return evaluate(saved, wanted.tasks, limit=wanted.limit, cost=wanted.cost, track=track).to_json()
