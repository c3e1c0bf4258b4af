"""Run a recipe: check it, load the model, calibrate, apply the steps, save and evaluate."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laconic.allocate import plan_text, plan_to_config
from laconic.calibrate import Calibration
from laconic.evaluate import evaluate
from laconic.model import LanguageModel, load
from laconic.model.anatomy.infer import uncalled_stacks
from laconic.model.loading import load_streamed
from laconic.processes import broadcast, on_rank_zero, sync_errors
from laconic.progress import Track, silent
from laconic.recipe.checked import CheckedRun, check_run
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate.estimate import Estimate, announce, estimate
from laconic.recipe.flow import CombinedOutcome, apply_steps
from laconic.recipe.schema import IN_MEMORY, EvaluationConfig, Recipe, key_of, write_recipe
from laconic.recipe.streaming import open_streamed
from laconic.report.plots import curves, png
from laconic.store import ExtraFiles, file_bytes, save
from laconic.store.streamed import save_streamed


@dataclass(frozen=True, kw_only=True)
class RunRecord:
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
    changes: CombinedOutcome
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
class PreparedRun:
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

    def finish(
        self, lm: LanguageModel, outcome: CombinedOutcome, *, track: Track = silent, device: str = "cpu"
    ) -> RunRecord:
        """Save and evaluate the compressed model.

        In a run of several processes, the first process writes and evaluates the folder; all return the same record.

        Args:
            lm: the compressed model.
            outcome: the results of the steps.
            track: reports progress.
            device: where the saved model is evaluated.
        """
        recipe, output = self.recipe, self.output
        if output is not None:
            files = extra_files(recipe, outcome)
            if lm.loans is None:
                on_rank_zero(save)(lm, output, files)
            else:
                on_rank_zero(save_streamed)(lm, output, files, track=track)
                # The parts of the scratch folder are removed; what remains reads the saved model.
                tokenizers = lm.tokenizer, lm.target_tokenizer
                lm = replace(load_streamed(str(output), tokenizers=tokenizers), label_order=lm.label_order)
        seconds = time.perf_counter() - self.start
        return RunRecord(
            recipe=recipe,
            key=key_of(recipe),
            lm=lm,
            output=output,
            seconds=broadcast(seconds),
            changes=outcome,
            stacks={stack.blocks: len(blocks) for stack, blocks in lm.stacks()},
            idle=dict(uncalled_stacks(lm.model)),
            file_bytes=None if output is None else on_rank_zero(file_bytes)(output),
            evaluation=None
            if recipe.evaluate is None or output is None
            else on_rank_zero(_evaluation)(recipe, output, track, device),
        )


@contextmanager
def prepare_run(checked: CheckedRun) -> Iterator[PreparedRun]:
    """Load the model of a recipe that was checked.

    Within the block the model is in float32. After the block, a model that the caller had loaded gets its dtypes back.

    Args:
        checked: the recipe, its model and its calibration data. A model that the caller had loaded is changed in place.

    Raises:
        UserError: the model cannot be loaded.
    """
    recipe, output, model, data = checked.recipe, checked.output, checked.model, checked.data
    with ExitStack() as stack:
        with sync_errors():
            announce(checked)
            if checked.streams:
                assert output is not None
                tokenizers = checked.empty.tokenizer, checked.empty.target_tokenizer
                streamed = open_streamed(recipe, output, data, model.device, tokenizers)
                lm = model.with_inputs(stack.enter_context(streamed))
            else:
                lm = stack.enter_context(model.open_model())
        yield PreparedRun(recipe=recipe, output=output, lm=lm, data=data, start=checked.start)


def run(recipe: Recipe, output: Path | None = None, *, track: Track = silent, device: str = "cpu") -> RunRecord:
    """Run a recipe and write the compressed model to a folder. After an error there is no folder.

    Args:
        recipe: the model, the data and the steps.
        output: the new folder; None leaves the model in memory.
        track: reports progress.
        device: the device to compute on.

    Raises:
        UserError: a part of the recipe is impossible. Most checks run before weights are loaded.
    """
    with sync_errors():
        # Nothing is written until the checks have succeeded in all processes.
        checked = check_run(recipe, output, _model_of(recipe, device), track=track)
    with prepare_run(checked) as prepared:
        return prepared.finish(*apply_steps(prepared.lm, recipe.steps, prepared.data), track=track, device=device)


def estimate_run(recipe: Recipe, output: Path | None = None, *, track: Track = silent, device: str = "cpu") -> Estimate:
    """Estimate the costs of `run`, for the same arguments.

    Raises:
        UserError: as `run`.
    """
    with sync_errors():
        checked = check_run(recipe, output, _model_of(recipe, device), track=track)
    return estimate(checked)


def _model_of(recipe: Recipe, device: str) -> ModelInput:
    return ModelInput(name=recipe.model, label_order=recipe.label_order, device=device)


def extra_files(recipe: Recipe, outcome: CombinedOutcome) -> ExtraFiles:
    """The files that are saved with a compressed model: the recipe, the plans and the learning curves."""
    curves_by_path = {
        f"{name}/curves.png": png(curves(history["lines"], name))
        for step in outcome.found
        for name, history in step.items()
        if isinstance(history, Mapping) and "lines" in history
    }
    reproducible = recipe.model and recipe.data != IN_MEMORY
    return ExtraFiles(
        recipe=write_recipe(recipe) if reproducible else None,
        plan=tuple(plan_text(plan) for plan in outcome.plans if plan),
        files={**outcome.files, **curves_by_path},
    )


def _evaluation(recipe: Recipe, output: Path, track: Track, device: str) -> dict[str, Any]:
    settings = recipe.evaluate or EvaluationConfig()
    # The saved model is evaluated, not the one in memory.
    saved = load(str(output), device).with_label_order(recipe.label_order)
    return evaluate(saved, settings.tasks, limit=settings.limit, cost=settings.cost, track=track).to_json()
