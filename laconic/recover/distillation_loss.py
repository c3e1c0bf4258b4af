"""The module that is trained: a student with its loss, which may compare it with a teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from laconic.calibrate.collation import to_device
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Predictions
from laconic.numerics.distributions import Gaussian
from laconic.recover.layer_matching import Match, check_same_tokens
from laconic.recover.observe import Feature, LayerOutputs, observe

WeightSchedule = Literal["constant", "fade", "grow"]
"""The change of a weight during training: none, linear to zero, or linear from zero."""


TERMS = ("task", "logits", "matches")
"""The names of the terms of a loss; `matches` stands for all terms that compare layers."""


class Observed(NamedTuple):
    """The outputs of a model on a batch.

    Args:
        predictions: its predictions.
        stacks: the layer outputs of each stack, the encoder first; empty if no term compares layers.
    """

    predictions: Predictions
    stacks: tuple[LayerOutputs, ...]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a distillation loss and their weights.

    Args:
        task: weight of the loss on the data's own labels.
        logits: weight of the divergence from the teacher's predictions, at `temperature`.
        temperature: divisor of the logits.
        matches: pairs of layers to compare, each with its own weight.
        schedules: schedule of the weight by term (`task`, `logits`, `matches`); missing terms are constant.
        places: for each output of the student, the output of the teacher for the same class; None if the order is
            equal.

    Example:
        >>> Terms(task=1.0, schedules={"task": "fade"}).weight("task", 0.75)
        0.25
    """

    task: float = 0.0
    logits: float = 0.0
    temperature: float = 1.0
    matches: tuple[Match, ...] = ()
    schedules: Mapping[str, WeightSchedule] = field(default_factory=dict)
    places: tuple[int, ...] | None = None

    @property
    def features(self) -> frozenset[Feature]:
        """The kinds of layer outputs that are compared."""
        return frozenset(Feature(match.feature) for match in self.matches)

    @property
    def has_teacher(self) -> bool:
        """Whether any term needs a teacher."""
        return self.logits > 0 or bool(self.matches)

    def weight(self, term: str, done: float | None) -> float:
        """Return the present weight of a term.

        Args:
            term: `task`, `logits` or `matches`.
            done: finished fraction of the training, in [0, 1]; None for the weight without its schedule.
        """
        full = {"task": self.task, "logits": self.logits, "matches": 1.0}[term]
        if done is None:
            return full
        return full * {"constant": 1.0, "fade": 1 - done, "grow": done}[self.schedules.get(term, "constant")]


class DistillationLoss(nn.Module):
    """The loss of a student on batches of `{"student": batch, "teacher": batch, "soft_targets": values}`.

    `soft_targets` are the precomputed predictions of the teacher. The teacher is not a submodule, so that it is neither
    trained nor saved.

    Args:
        student: the model to train.
        teacher: the model to learn from; None for the student's own task.
        terms: the terms of the loss.
        dropout: train the student with the dropout of its configuration.
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
        """Set the training mode; the student's own mode also depends on `dropout`."""
        super().train(mode)
        self.model.train(mode and self.dropout)
        return self

    def prepare(self, batch: Mapping[str, Any], seed: int) -> None:
        """Create the projections between layers of different widths, and check all terms on one batch.

        Args:
            batch: a batch as `forward` takes it.
            seed: seed of the projections.

        Raises:
            UserError: a match names a layer that does not exist, the two models predict different things, or labels of
                the task are missing.
        """
        device = self._models[0].device
        student, teacher = (to_device(batch.get(whose) or {}, device) for whose in ("student", "teacher"))
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

    def forward(
        self, student: Batch, teacher: Batch | None = None, soft_targets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            student: a batch for the student.
            teacher: the same rows as a batch for the teacher; None if no term needs a teacher.
            soft_targets: precomputed predictions of the teacher, (predictions, values). None runs the teacher.

        Returns:
            The weighted sum of the terms as `loss`, and the unweighted terms by name.
        """
        ours = self._observe_student(student)
        losses: dict[str, Tensor] = {}
        if self.terms.task:
            losses["task"] = task_loss(ours.predictions)
        if self.terms.has_teacher:
            assert teacher is not None
            with torch.no_grad():
                theirs = self._observe_teacher(teacher, soft_targets)
            if self.terms.logits:
                losses["logits"] = _divergence(theirs.predictions, ours.predictions, self.terms.temperature)
            if self.terms.matches:
                losses["matches"] = self._match_loss(theirs.stacks, ours.stacks)
        # Held-out losses use full weights, so that they are comparable over the training.
        weights = {term: self.terms.weight(term, self.done if self.training else None) for term in losses}
        total = sum((weights[term] * loss for term, loss in losses.items()), ours.predictions.values.new_zeros(()))
        return {"loss": total, **{term: loss.detach() for term, loss in losses.items()}}

    def _observe_student(self, batch: Batch) -> Observed:
        return Observed(*observe(self._models[0], batch, self.terms.features))

    def _observe_teacher(self, batch: Batch, soft_targets: Tensor | None) -> Observed:
        teacher = self._models[1]
        assert teacher is not None
        if soft_targets is not None:
            rows, distribution = soft_targets.new_zeros(len(soft_targets)), teacher.task.distribution
            predictions, stacks = Predictions(soft_targets, rows, None, distribution), ()
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


def task_loss(predictions: Predictions) -> Tensor:
    """Return the mean loss on the labels: the cross-entropy in nats, or the squared error of scores.

    For several labels or scores per row, their cross-entropies or squared errors are summed.

    Args:
        predictions: predictions with labels.

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
    """Raise UserError if student and teacher do not predict the same things."""
    if type(ours.distribution) is not type(theirs.distribution) or ours.values.shape[-1] != theirs.values.shape[-1]:
        raise UserError(
            f"The teacher predicts {_describe(theirs)}, and the student {_describe(ours)}; take a teacher of the same "
            "task with the same labels or vocabulary."
        )
    if len(ours.values) != len(theirs.values):
        raise UserError(
            "The student and the teacher read the same text as different tokens, so their predictions belong "
            "to different positions; take models with the same tokenizer."
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
