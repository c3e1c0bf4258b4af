"""What is trained: a student with the loss that it is taught by. One module, as Trainer and several processes want it.

A term of the loss may be the student's own task, or how far it is from a teacher in its predictions or in its layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Predictions
from laconic.numerics.distributions import Gaussian
from laconic.recover.layer_matching import Match, check_same_tokens
from laconic.recover.observe import Feature, LayerOutputs, observe

WeightSchedule = Literal["constant", "fade", "grow"]
"""How a weight goes while training does: as it is, down to zero, or up from it."""


TERMS = ("task", "logits", "matches")
"""What weights of a loss are named by."""


class Observed(NamedTuple):
    """A model's predictions on a batch, and what it shows of its stacks."""

    predictions: Predictions
    stacks: tuple[LayerOutputs, ...]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of the loss and their weights.

    task:        of the data's own labels.
    logits:      of the divergence from the teacher's predictions, at `temperature`.
    matches:     of layers, each with a weight of its own.
    courses:     by term (`task`, `logits`, `matches`), how its weight goes.
    places:      for each output of the student's, which of the teacher's is the same class; None where all lie alike.
    """

    task: float = 0.0
    logits: float = 0.0
    temperature: float = 1.0
    matches: tuple[Match, ...] = ()
    courses: Mapping[str, WeightSchedule] = field(default_factory=dict)
    places: tuple[int, ...] | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """What is compared of the layers."""
        return frozenset(Feature(match.feature) for match in self.matches)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher."""
        return self.logits > 0 or bool(self.matches)

    def weight(self, term: str, done: float | None) -> float:
        """What `term` counts when this fraction of the training is done; its full weight for None."""
        full = {"task": self.task, "logits": self.logits, "matches": 1.0}[term]
        if done is None:
            return full
        return full * {"constant": 1.0, "fade": 1 - done, "grow": done}[self.courses.get(term, "constant")]


class DistillationLoss(nn.Module):
    """The loss of a student on batches of `{"student": batch, "teacher": batch, "told": values}`.

    The teacher is no part of the module: it is neither trained nor saved. `told` are its predictions where they were
    worked out before. Without `dropout` the student is trained as it will be used.
    """

    def __init__(
        self, student: LanguageModel, teacher: LanguageModel | None, terms: Terms, dropout: bool = True
    ) -> None:
        super().__init__()
        self.model = student.model
        self.terms = terms
        self.dropout = dropout
        self.done = 0.0
        self._models = (student, teacher)
        self.projections = nn.ModuleDict()

    @property
    def readers(self) -> tuple[LanguageModel, LanguageModel | None]:
        """The student and the teacher."""
        return self._models

    def train(self, mode: bool = True) -> "DistillationLoss":
        """What a module does; of transformers nothing but dropout, of values or of layers, hangs on the mode."""
        super().train(mode)
        self.model.train(mode and self.dropout)
        return self

    def prepare(self, batch: Mapping[str, Any], seed: int) -> None:
        """Look at one batch: make the projections that matches of different widths need, and check that all fit.

        Raises:
            UserError: a match names a layer that is not there, or the two predict different things, or there are no
                labels of a task that is to be trained.
        """
        device = self._models[0].device
        student, teacher = (moved(batch.get(whose), device) for whose in ("student", "teacher"))
        with torch.no_grad():
            ours = self._observe_student(student)
            if self.terms.task:
                task_loss(ours.predictions)
            if not self.terms.has_teacher:
                return
            theirs = self._observe_teacher(teacher, None)
        check_comparable(ours.predictions, theirs.predictions)
        generator = torch.Generator().manual_seed(seed)
        for number, match in enumerate(self.terms.matches):
            for stack, (their, our) in enumerate(zip(theirs.stacks, ours.stacks, strict=True)):
                if match.applies_to(stack, len(ours.stacks)):
                    check_same_tokens(their, our)
                    match.check(their, our)
                    if (widths := match.widths(their, our)) is not None:
                        self.projections[f"{number}-{stack}"] = _projection(*widths, generator).to(our.mask.device)

    def forward(self, student: Batch, teacher: Batch | None = None, told: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted sum as `loss`, and each of its terms."""
        ours = self._observe_student(student)
        losses: dict[str, Tensor] = {}
        if self.terms.task:
            losses["task"] = task_loss(ours.predictions)
        if self.terms.has_teacher:
            assert teacher is not None
            with torch.no_grad():
                theirs = self._observe_teacher(teacher, told)
            if self.terms.logits:
                losses["logits"] = _divergence(theirs.predictions, ours.predictions, self.terms.temperature)
            if self.terms.matches:
                losses["matches"] = self._match_loss(theirs.stacks, ours.stacks)
        # Held-out losses are to be compared over time, so there no weight changes.
        weights = {term: self.terms.weight(term, self.done if self.training else None) for term in losses}
        total = sum((weights[term] * loss for term, loss in losses.items()), ours.predictions.values.new_zeros(()))
        return {"loss": total, **{term: loss.detach() for term, loss in losses.items()}}

    def _observe_student(self, batch: Batch) -> Observed:
        return Observed(*observe(self._models[0], batch, self.terms.features))

    def _observe_teacher(self, batch: Batch, told: Tensor | None) -> Observed:
        teacher = self._models[1]
        assert teacher is not None
        if told is not None:
            predictions, stacks = Predictions(told, told.new_zeros(len(told)), None, teacher.task.distribution), ()
        else:
            predictions, stacks = observe(teacher, batch, self.terms.features)
        if self.terms.places is not None:
            predictions = predictions._replace(values=predictions.values[:, self.terms.places])
        return Observed(predictions, stacks)

    def _match_loss(self, theirs: Sequence[LayerOutputs], ours: Sequence[LayerOutputs]) -> Tensor:
        total, projections = torch.zeros((), device=ours[0].mask.device), dict(self.projections.items())
        for number, match in enumerate(self.terms.matches):
            for stack, (their, our) in enumerate(zip(theirs, ours, strict=True)):
                if match.applies_to(stack, len(ours)):
                    project = projections.get(f"{number}-{stack}")
                    total = total + match.weight * match.compute_loss(their, our, project)
        return total


def moved(batch: object, device: torch.device) -> Batch:
    """A batch on `device`; empty for None."""
    assert batch is None or isinstance(batch, dict)
    return {name: tensor.to(device) for name, tensor in (batch or {}).items()}


def task_loss(predictions: Predictions) -> Tensor:
    """Cross-entropy of the labels, or the squared error of scores; nats, but for a factor of two in the latter.

    Of a multi-label model the cross-entropies of its labels are added up, of several scores the squared errors.

    Raises:
        UserError: the data has no labels.
    """
    if predictions.labels is None:
        raise UserError(
            "The data has no labels that this model predicts, so there is no task to train; "
            "name data with labels, or distil without task."
        )
    loss = predictions.distribution.loss(predictions.values, predictions.labels).mean()
    return 2 * loss if isinstance(predictions.distribution, Gaussian) else loss


def check_comparable(ours: Predictions, theirs: Predictions) -> None:
    """Raise UserError where student and teacher do not predict the same things."""
    if type(ours.distribution) is not type(theirs.distribution) or ours.values.shape[-1] != theirs.values.shape[-1]:
        raise UserError(
            f"The teacher predicts {_describe(theirs)}, and the student {_describe(ours)}; take a teacher of the same "
            "task with the same labels or vocabulary."
        )
    if len(ours.values) != len(theirs.values):
        raise UserError(
            "The student and the teacher read the same text as different tokens, so their predictions are of "
            "different places; take models of one tokenizer."
        )


def _describe(predictions: Predictions) -> str:
    return predictions.distribution.describe(predictions.values.shape[-1])


def _divergence(theirs: Predictions, ours: Predictions, temperature: float) -> Tensor:
    return theirs.distribution.divergence(theirs.values.float(), ours.values.float(), temperature).mean()


def _projection(from_width: int, to_width: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(from_width, to_width)
    with torch.no_grad():
        bound = from_width**-0.5
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
