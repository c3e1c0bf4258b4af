"""Steps that train a model: on its own task with labels, or to match a teacher.

G. Hinton et al., 2015, arXiv 1503.02531 (predictions at a temperature); X. Jiao et al., "TinyBERT", 2020, arXiv
1909.10351 (hidden states, attention maps, embeddings); W. Wang et al., "MiniLM", NeurIPS 2020, arXiv 2002.10957
(relations of values); Z. Yang et al., "TextBrewer", ACL 2020, arXiv 2002.12620 (any pair of layers, weights that
change). The formulas are in `laconic.numerics.distillation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from laconic.calibrate.classes import match_outputs
from laconic.calibrate.collation import to_device
from laconic.errors import UserError, must_be, unknown
from laconic.model import LanguageModel, ModelTask, load, load_empty
from laconic.recover.distillation_loss import TERMS, Terms, WeightSchedule
from laconic.recover.layer_matching import Match, uniform_layers
from laconic.recover.observe import Feature, LayerOutputs, observe
from laconic.recover.rows import DistillationBatch
from laconic.recover.training import Training

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Distil(Training):
    """Train the model to match the predictions or layers of a teacher.

    Args:
        dropout: train with dropout. Off by default, because a compressed model is close to its teacher, and noise would
            move it away.
        teacher: folder or hub name of the teacher. None for the model before the first compressing step.
        logits: weight of the divergence from the teacher's predictions, at `temperature`.
        temperature: divisor of the logits of both, above 0.
        task: weight of the loss on the data's own labels.
        hidden: weight of the hidden states after each block, and of the inputs of the first.
        attention: weight of the attention maps of each block.
        values: weight of the relations between the value vectors of the last block, split into `heads` heads.
        heads: number of heads for these relations.
        matches: further pairs of layers, each with its own feature, loss and weight.
        courses: schedules of weights by term, such as `{task: grow, logits: fade}`; `matches` names all terms that
            compare layers.

    Raises:
        UserError: nothing is compared with the teacher, or a schedule names an unknown term.

    Example:
        >>> Distil(task=0.5, courses={"task": "grow"}).needs_labels
        True
    """

    name = "distil"

    teacher: str | None = None
    logits: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    task: Weight = 0.0
    hidden: Weight = 0.0
    attention: Weight = 0.0
    values: Weight = 0.0
    heads: Annotated[int, Field(ge=1)] = 12
    matches: tuple[Match, ...] = ()
    courses: dict[str, WeightSchedule] = field(default_factory=dict)
    dropout: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for term in self.courses:
            if term not in TERMS:
                raise unknown("term of the loss", term, TERMS)
        if not (self.logits or self.compares_layers):
            raise must_be("logits", "above 0, or hidden, attention, values or matches given", self.logits)

    @property
    def needs_original(self) -> bool:
        return self.teacher is None

    @property
    def needs_labels(self) -> bool:
        return self.task > 0

    @property
    def compares_layers(self) -> bool:
        return bool(self.hidden or self.attention or self.values or self.matches)

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        teacher = lm.original if self.teacher is None else load_empty(self.teacher)
        if self.teacher is not None and teacher is not None and teacher.task is not lm.task:
            raise UserError(
                f"The teacher '{self.teacher}' has the task {teacher.task}, and the model {lm.task}; "
                "take one of the same task."
            )
        if teacher is not None:
            self._places(lm, teacher)

    def load_teacher(self, lm: LanguageModel) -> LanguageModel:
        teacher = lm.original if self.teacher is None else load(self.teacher, str(lm.device))
        if teacher is None:
            raise UserError("The step 'distil' has no teacher: set teacher, or put it after a compressing step.")
        self._places(lm, teacher)
        teacher.model.eval()
        return teacher

    def loss_terms(
        self, lm: LanguageModel, teacher: LanguageModel | None, batch: DistillationBatch, classes: Sequence[str] = ()
    ) -> Terms:
        assert teacher is not None
        return Terms(
            task=self.task,
            logits=self.logits,
            temperature=self.temperature,
            matches=(*self.matches, *self._spread(lm, teacher, batch)),
            schedules=self.courses,
            places=self._places(lm, teacher, classes),
        )

    def _places(self, lm: LanguageModel, teacher: LanguageModel, classes: Sequence[str] = ()) -> tuple[int, ...] | None:
        """For each output of the model the teacher's output of the same class; None if the order is the same.

        Raises:
            UserError: the two models have different classes.
        """
        places = match_outputs(lm, teacher, classes) if self.logits else None
        return None if places is None else tuple(places)

    def _spread(self, lm: LanguageModel, teacher: LanguageModel, batch: DistillationBatch) -> list[Match]:
        """The matches for the fields `hidden`, `attention` and `values`, spread evenly over the teacher's blocks."""
        if not (self.hidden or self.attention or self.values):
            return []
        features = frozenset({Feature.HIDDEN})
        with torch.no_grad():
            _, ours = observe(lm, to_device(batch["student"], lm.device), features)
            _, theirs = observe(teacher, to_device(batch["teacher"], lm.device), features)
        return [
            match
            for number, (their, our) in enumerate(zip(theirs, ours, strict=True))
            for match in self._of_stack(their, our, None if len(ours) == 1 else ("encoder", "decoder")[number])
        ]

    def _of_stack(self, theirs: LayerOutputs, ours: LayerOutputs, stack: str | None) -> list[Match]:
        layers = uniform_layers(len(theirs.hidden) - 1, len(ours.hidden) - 1)
        each = [(Feature.HIDDEN, self.hidden, [(0, 0), *layers]), (Feature.ATTENTION, self.attention, layers),
                (Feature.VALUES, self.values, layers[-1:])]  # fmt: skip
        return [
            Match(
                teacher=teacher,
                student=student,
                feature=feature,
                weight=weight / len(pairs),
                stack=stack,  # pyright: ignore[reportArgumentType]
                heads=self.heads,
            )
            for feature, weight, pairs in each
            if weight
            for teacher, student in pairs
        ]


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Train the model on its task: classes, scores, masked tokens, next tokens or targets.

    Example:
        >>> Finetune(epochs=2).needs_labels
        True
    """

    name = "finetune"

    @property
    def prepares(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def compares_layers(self) -> bool:
        return False

    def load_teacher(self, lm: LanguageModel) -> LanguageModel | None:
        return None

    def loss_terms(
        self, lm: LanguageModel, teacher: LanguageModel | None, batch: DistillationBatch, classes: Sequence[str] = ()
    ) -> Terms:
        return Terms(task=1.0)

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if lm.task is ModelTask.EMBEDDING:
            raise UserError("A plain encoder has no task to be trained on; use 'distil', which needs no labels.")
