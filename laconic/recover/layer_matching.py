"""Pairs of layers of teacher and student that distillation compares, with the compared feature and the loss.

Layer 0 is the input of the first block, and layer j the output of block j; for the last layer it is the output of the
final norm, if there is one. Attention maps and value vectors begin with layer 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from laconic.errors import UserError, must_be
from laconic.numerics.distillation import (
    attention_cross_entropy,
    attention_mse,
    fsp_matrix,
    gram_mse,
    hidden_cosine,
    hidden_mse,
    relation_divergence,
)
from laconic.recover.observe import Feature, LayerOutputs
from laconic.typed import Typed

Number = Annotated[int, Field(ge=0)]
Layer = Number | tuple[Number, Number]
Loss = Literal["mse", "cosine", "cross-entropy", "gram", "relation"]

LOSSES: dict[Feature, tuple[Loss, ...]] = {
    Feature.HIDDEN: ("mse", "cosine", "gram"),
    Feature.ATTENTION: ("mse", "cross-entropy"),
    Feature.VALUES: ("relation",),
}
"""The losses for each feature, the default first."""


@dataclass(frozen=True, kw_only=True)
class Match(metaclass=Typed):
    """A pair of layers, one of the teacher and one of the student, that are compared by a loss.

    Args:
        teacher: number of the teacher's layer; two numbers for the loss `gram`, which compares products of two layers.
        student: number of the student's layer, or two.
        feature: `hidden` states, `attention` maps or `values`.
        loss: for hidden states `mse`, `cosine` or `gram`, for attention maps `mse` or `cross-entropy`, for values
            `relation`. None for the first of these.
        weight: weight in the sum of all terms, above 0.
        stack: `encoder` or `decoder`, for an encoder-decoder; None for both.
        heads: number of heads that values are cut into for their relations.

    Raises:
        UserError: the loss does not compare this feature, or takes another number of layers.

    Example:
        >>> Match(teacher=4, student=2, feature="attention").loss_name
        'mse'
    """

    name: ClassVar[str] = "match"

    teacher: Layer
    student: Layer
    feature: Feature = Feature.HIDDEN
    loss: Loss | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    stack: Literal["encoder", "decoder"] | None = None
    heads: Annotated[int, Field(ge=1)] = 12

    def __post_init__(self) -> None:
        if self.loss_name not in LOSSES[Feature(self.feature)]:
            fits = ", ".join(LOSSES[Feature(self.feature)])
            raise must_be("loss", f"one of {fits} for the feature '{self.feature}'", self.loss_name)
        for name, layer in {"teacher": self.teacher, "student": self.student}.items():
            if isinstance(layer, tuple) != (self.loss_name == "gram"):
                raise must_be(name, "two layers for the loss gram, and one for any other", layer)

    @property
    def loss_name(self) -> Loss:
        """The name of the loss: the given one, or the default of the feature."""
        return self.loss or LOSSES[Feature(self.feature)][0]

    def applies_to(self, stack: int, stacks: int) -> bool:
        """Return whether the match applies to a stack.

        Args:
            stack: number of the stack, from 0; the encoder comes first.
            stacks: number of stacks of the model.
        """
        return self.stack is None or stacks == 1 or self.stack == ("encoder", "decoder")[stack]

    def compute_loss(
        self, teacher: LayerOutputs, student: LayerOutputs, project: nn.Module | None
    ) -> Float[Tensor, ""]:
        """Compute the unweighted loss between the layers of teacher and student.

        Args:
            teacher: layer outputs of the teacher.
            student: layer outputs of the student, on the same tokens.
            project: maps the student's width to the teacher's; None if the widths are equal.
        """
        if self.loss_name == "gram":
            flows = [
                fsp_matrix(*(outputs.hidden[at] for at in _as_tuple(layer)))
                for outputs, layer in self._sides(teacher, student)
            ]
            return gram_mse(flows[0], flows[1], student.mask)
        theirs, ours = (self._layer(outputs, layer) for outputs, layer in self._sides(teacher, student))
        if project is not None:
            ours = project(ours)
        if self.loss_name == "relation":
            return relation_divergence(theirs, ours, self.heads, student.mask)
        losses: dict[Loss, Callable[..., Tensor]] = {"mse": hidden_mse, "cosine": hidden_cosine}
        if self.feature == Feature.ATTENTION:
            losses = {"mse": attention_mse, "cross-entropy": attention_cross_entropy}
        return losses[self.loss_name](theirs, ours, student.mask)

    def check(self, teacher: LayerOutputs, student: LayerOutputs) -> None:
        """Raise UserError if a layer does not exist, or the width of the values is no multiple of `heads`."""
        for role, (outputs, layer) in zip(("teacher", "student"), self._sides(teacher, student), strict=True):
            parts, first = self._parts(outputs)
            for number in _as_tuple(layer):
                if not first <= number < first + len(parts):
                    raise must_be(
                        f"The layer of the {role} in a match of '{self.feature}'",
                        f"in [{first}, {first + len(parts) - 1}]" if parts else "left out, as this model returns none",
                        number,
                    )
            if self.loss_name == "relation" and parts[0].shape[-1] % self.heads:
                raise must_be("heads", f"a divisor of the {role}'s {parts[0].shape[-1]} values", self.heads)

    def widths(self, teacher: LayerOutputs, student: LayerOutputs) -> tuple[int, int] | None:
        """Return (student's width, teacher's width) if a projection is needed; else None.

        A projection is needed for hidden states of different widths, except for the loss `gram`.
        """
        if self.feature != Feature.HIDDEN or self.loss_name == "gram":
            return None
        theirs, ours = (self._layer(outputs, layer) for outputs, layer in self._sides(teacher, student))
        return None if theirs.shape[-1] == ours.shape[-1] else (ours.shape[-1], theirs.shape[-1])

    def _sides(
        self, teacher: LayerOutputs, student: LayerOutputs
    ) -> tuple[tuple[LayerOutputs, Layer], tuple[LayerOutputs, Layer]]:
        return (teacher, self.teacher), (student, self.student)

    def _layer(self, outputs: LayerOutputs, layer: Layer) -> Tensor:
        parts, first = self._parts(outputs)
        (at,) = _as_tuple(layer)
        return parts[at - first]

    def _parts(self, outputs: LayerOutputs) -> tuple[Sequence[Tensor], int]:
        """The layer outputs that are compared, and the number of the first layer among them."""
        if self.feature == Feature.HIDDEN:
            return outputs.hidden, 0
        return (outputs.attention if self.feature == Feature.ATTENTION else outputs.values), 1


def uniform_layers(teacher: int, student: int) -> list[tuple[int, int]]:
    """Return pairs (teacher's layer, student's layer) that spread the student's blocks evenly over the teacher's.

    Args:
        teacher: number of blocks of the teacher.
        student: number of blocks of the student.

    Example:
        >>> uniform_layers(6, 3)
        [(2, 1), (4, 2), (6, 3)]
    """
    return [(round(layer * teacher / student), layer) for layer in range(1, student + 1)]


def _as_tuple(layer: Layer) -> tuple[int, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


def check_same_tokens(teacher: LayerOutputs, student: LayerOutputs) -> None:
    """Raise UserError if the token masks of student and teacher differ."""
    if teacher.mask.shape != student.mask.shape or not bool((teacher.mask == student.mask).all()):
        raise UserError(
            "The student and the teacher read the same text as different tokens, so layers cannot be matched; "
            "take models with the same tokenizer, or leave out hidden, attention, values and matches."
        )
