"""Replace the model by a student, which a later step `distil` or `finetune` trains.

The student has some of the model's blocks (V. Sanh et al., "DistilBERT", 2019, arXiv 1910.01108, keep every second
one), or random blocks between the model's embeddings and head; or it is another model, or the model itself with a head
for another task.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.calibrate import Calibration
from laconic.calibrate.classes import join_names, share_label_order
from laconic.calibrate.passes import check_runs
from laconic.compress import Outcome, Shorten, Step
from laconic.errors import UserError, must_be, quote, reason_of, unknown
from laconic.formats import Format
from laconic.model import LanguageModel, ModelTask, load, load_empty
from laconic.model.checkpoints.fit import check_layer_counts
from laconic.model.embedding import Pipeline, adapt_width
from laconic.model.loading import has_weights, load_config, load_pipeline, load_tokenizers
from laconic.model.predictions import ModelRunError
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import find_auto_class
from laconic.recover.student_init import (
    ProblemType,
    check_head,
    copy_weights,
    corresponding_name,
    dropped_blocks,
    new_head_task,
    random_model,
    set_head,
)

SINGLE_LABEL = "single_label_classification"
IDENTITY = {"architectures", "dtype", "model_type", "quantization_config", "transformers_version", "_name_or_path"}
"""Fields of a configuration that identify the model or its storage and do not describe its architecture."""
Head = Literal["classification", "token-classification", "question-answering", "multiple-choice"]
Number = Annotated[int, Field(ge=0)]
Blocks = tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Student(Step):
    """Continue with a smaller model, or with a model that has another head.

    Args:
        blocks: numbers of the blocks of the model that the student has, in order; for an encoder-decoder
            `{encoder: [0, 2], decoder: [0]}`. None for all.
        weights: weights of these blocks: those of the model (`blocks`), or `random` ones.
        outside: copy embeddings, last norm and head from the model where shapes are equal, except for a new head.
        config: values of the configuration that differ, such as `{hidden_size: 192}`; the blocks then have random
            weights.
        model: folder or hub name of another model, which becomes the student. It has random weights if the folder has
            only a config.json.
        classes: a new head with random weights: the number of classes, 1 for a score, or the names of the classes in
            the order of the outputs. `finetune` then trains it.
        head: task of the new head: `classification` of texts, `token-classification`, `question-answering` or
            `multiple-choice`; the last two have no classes. None for the task of a model with classes, else
            `classification`.
        problem_type: problem type of the new head: `single_label_classification`, `multi_label_classification` or
            `regression`.
        seed: seed of random weights.

    Raises:
        UserError: no parameter describes the student, or parameters contradict each other.

    Example:
        >>> Student(blocks=[0, 2, 4]).needs_data
        False
    """

    name = "student"
    family = "student"
    example = "blocks=[0]"
    example_needs_data = False

    blocks: Blocks | dict[str, Blocks] | None = None
    weights: Literal["blocks", "random"] = "blocks"
    outside: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    classes: Annotated[int, Field(ge=1)] | Annotated[tuple[bool | int | str, ...], Field(min_length=1)] | None = None
    head: Head | None = None
    problem_type: ProblemType | None = None
    seed: Number = 0

    def __post_init__(self) -> None:
        names = self.classes if isinstance(self.classes, tuple) else ()
        if len(set(map(str, names))) < len(names):
            raise must_be("classes", "names that differ", join_names([*map(str, names)]))
        check_head(self.head, self.classes)
        if self.problem_type is not None and self.head not in (None, ModelTask.CLASSIFICATION):
            raise must_be("problem_type", f"left out with the head {self.head}", self.problem_type)
        if self.problem_type is not None and self.classes is None:
            raise must_be("problem_type", "left out without classes, as the head does not change", self.problem_type)
        if self.problem_type == SINGLE_LABEL and (self.classes == 1 or len(names) == 1):
            raise must_be("problem_type", "another one for one class, which would always be right", SINGLE_LABEL)
        is_described = self.blocks is not None or bool(self.config) or self._has_new_head
        if self.model is not None and is_described:
            raise must_be(
                "model", "left out with blocks, config, classes or head, which describe another student", self.model
            )
        if self.model is None and not is_described and self.weights == "blocks":
            raise UserError(
                "The step 'student' has no description of the student: give blocks, config, classes, head, weights or "
                "model."
            )

    @property
    def needs_data(self) -> bool:
        return False

    @property
    def _names(self) -> tuple[str, ...]:
        """The class names of a new head."""
        if isinstance(self.classes, tuple):
            return tuple(map(str, self.classes))
        return tuple(f"LABEL_{number}" for number in range(self.classes or 0))

    @property
    def _has_random_blocks(self) -> bool:
        """Whether the blocks have random weights."""
        return self.weights == "random" or bool(self.config)

    @property
    def _has_random_weights(self) -> bool:
        """Whether any part of the student has random weights."""
        return self._has_random_blocks or self._has_new_head

    @property
    def _has_new_head(self) -> bool:
        return self.classes is not None or self.head is not None

    @property
    def prepares(self) -> bool:
        return self._has_new_head and self.blocks is None and not self._has_random_blocks

    def check(self, lm: LanguageModel) -> None:
        if self.model is not None:
            found = self._load_empty_student(lm)
            if found.task is not lm.task:
                raise UserError(
                    f"The student '{self.model}' has the task {found.task}, and the model {lm.task}; "
                    "take one of the same task."
                )
            return
        for name in self.config:
            if name not in lm.model.config.to_dict():
                raise unknown("value", name, lm.model.config.to_dict(), f"The configuration of '{lm.source}' has")
            if name in IDENTITY:
                raise must_be(
                    "config", f"without {name}, which identifies the model; use model for another one", self.config
                )
        if self.blocks is not None:
            Shorten(blocks=dropped_blocks(lm, self.blocks)).check(lm)
        if self._has_random_weights and any(isinstance(module, Format) for module in lm.model.modules()):
            raise UserError(
                "A student with random weights or a new head cannot be made of a compressed model; put the step first."
            )
        if self._has_random_weights:
            self._make_student(lm.to_meta())

    def dry_run(self, lm: LanguageModel) -> LanguageModel | None:
        if self.model is not None:
            return self._load_empty_student(lm)
        if self._has_random_weights:
            return self._make_student(lm)[0]
        if self.blocks is not None:
            Shorten(blocks=dropped_blocks(lm, self.blocks)).dry_run(lm)
        return None

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Make the student.

        Args:
            lm: the model; it is not changed.
            data: not used.

        Returns:
            An outcome whose `now` is the student.

        Raises:
            UserError: the blocks or the other model do not exist, the student has another task, or its forward pass
                fails.
        """
        self.check(lm)
        now, dropped = (self._load_student(lm), {}) if self.model is not None else self._make_student(lm)
        if self._has_random_weights or self.model is not None:
            self._check_runs(now)
        before, after = (model.stored_nbytes(model.sites(("blocks",))) for model in (lm, now))
        if self._has_new_head:
            before = {corresponding_name(now.model, name, lm.model): size for name, size in before.items()}
        names = dict.fromkeys((*before, *after), 0)
        return Outcome(plan={}, before=names | before, after=names | after, dropped=dropped, now=now)

    def _check_runs(self, lm: LanguageModel) -> None:
        """Run the student once, because some configurations can be built but fail in the forward pass."""
        try:
            check_runs(lm)
        except ModelRunError as error:
            if self.model is not None:
                raise
            where = f" with config {quote(self.config)}" if self.config else ""
            raise UserError(
                f"The student does not run{where}: {error.reason}; give values that fit together."
            ) from error

    def _make_student(self, lm: LanguageModel) -> tuple[LanguageModel, Mapping[str, tuple[int | str, ...]]]:
        """The student, and the numbers of the model's blocks that it lacks, by stack."""
        small = lm.copy()
        dropped = (
            {} if self.blocks is None else Shorten(blocks=dropped_blocks(lm, self.blocks)).apply(small, None).dropped
        )
        if not self._has_random_weights:
            return small, dropped
        config, kind = copy.deepcopy(small.model.config), type(small.model)
        try:
            config.update(self.config)
        except MODEL_ERRORS as error:
            raise UserError(f"config does not fit '{lm.source}': {reason_of(error)}; correct it.") from error
        check_layer_counts(config, "config.")
        if self._has_new_head:
            problem_type = self.problem_type or self.config.get("problem_type")
            kind = set_head(config, new_head_task(self.head, lm.task), self._names, problem_type)
        fresh = random_model(config, kind, lm.device, self.seed).train(lm.model.training)
        now = LanguageModel.of(fresh, lm.tokenizer)
        copy_weights(small, now, blocks=not self._has_random_blocks, outside=self.outside, head=not self._has_new_head)
        kept = {"dtype": lm.dtype, "source": lm.source, "target_tokenizer": lm.target_tokenizer, "dropped": lm.dropped}
        # The user's label_order is kept for a new head with the same number of outputs.
        stays = not self._has_new_head or self.classes == len(lm.label_order or ())
        now = now.with_label_order(lm.label_order if stays else None)
        # With a new head the task changes, so there is no original to compare with and no embedding pipeline.
        if not self._has_new_head:
            kept |= {"original": lm.original, "pipeline": _inherit_pipeline(lm, config)}
        return replace(now, **kept), dropped

    def _load_student(self, lm: LanguageModel) -> LanguageModel:
        assert self.model is not None
        if self._has_weights:
            return self._inherit_declarations(replace(load(self.model, str(lm.device)), original=lm.original), lm)
        own, target = load_tokenizers(self.model)
        made = replace(
            LanguageModel.of(self._from_configuration(lm, lm.device), own or lm.tokenizer),
            dtype=lm.dtype,
            source=self.model,
            original=lm.original,
            target_tokenizer=target or lm.target_tokenizer,
        )
        return self._inherit_declarations(made, lm)

    def _inherit_declarations(self, other: LanguageModel, lm: LanguageModel) -> LanguageModel:
        """`other` with the embedding pipeline declared in its folder, or else with that of `lm`.

        The label_order of `lm` is kept if both models have the same class names.
        """
        assert self.model is not None
        other = share_label_order(other, lm)
        if other.pipeline is not None or other.task is not lm.task:
            return other
        own = load_pipeline(self.model)
        pipeline = _inherit_pipeline(lm, other.model.config) if own is None else own.to(lm.device)
        return replace(other, pipeline=pipeline)

    def _load_empty_student(self, lm: LanguageModel) -> LanguageModel:
        """The student that `model` names, without weights."""
        assert self.model is not None
        if self._has_weights:
            found = load_empty(self.model)
        else:
            found = LanguageModel.of(self._from_configuration(lm, torch.device("meta")))
        return self._inherit_declarations(replace(found, source=self.model, original=lm.original), lm)

    @property
    def _has_weights(self) -> bool:
        return has_weights(self.model or "")

    def _from_configuration(self, lm: LanguageModel, device: torch.device) -> PreTrainedModel:
        assert self.model is not None
        config = load_config(self.model)
        kind = find_auto_class(config, config.architectures or (type(lm.model).__name__,))
        return random_model(config, kind, device, self.seed).train(lm.model.training)


def _inherit_pipeline(lm: LanguageModel, config: PreTrainedConfig) -> Pipeline | None:
    """The embedding pipeline of `lm`, adapted to a student with this configuration."""
    return None if lm.pipeline is None else adapt_width(lm.pipeline, config, lm.source)
