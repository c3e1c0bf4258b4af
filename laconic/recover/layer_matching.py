"""Which layer of the student is to be like which of the teacher, in what, and by which loss.

Layer 0 is what enters the first block, layer j what block j gives, and the last what a final norm makes of it where
there is one; attention maps and value vectors have no layer 0.
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
"""What each feature can be compared by, the default first."""


@dataclass(frozen=True, kw_only=True)
class Match(metaclass=Typed):
    """One pair of layers that are to be alike.

    teacher, student: numbers of layers; two of each for the loss `gram`, which compares products of two layers.
    feature:          `hidden`, `attention` or `values`.
    loss:             of hidden states `mse`, `cosine` or `gram`; of attention maps `mse` or `cross-entropy`; of values
                      `relation`; the first of these where it is not said.
    weight:           in the sum of all terms.
    stack:            of an encoder-decoder `encoder` or `decoder`; both where it is not said.
    heads:            into how many heads values are cut for their relations.
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
        """The loss, said or not."""
        return self.loss or LOSSES[Feature(self.feature)][0]

    def applies_to(self, stack: int, stacks: int) -> bool:
        """Whether it is meant for this stack of so many."""
        return self.stack is None or stacks == 1 or self.stack == ("encoder", "decoder")[stack]

    def compute_loss(
        self, teacher: LayerOutputs, student: LayerOutputs, project: nn.Module | None
    ) -> Float[Tensor, ""]:
        """How far the two are apart; `project` maps the student's width to the teacher's.

        Raises:
            UserError: there is no such layer, or the values cannot be cut into so many heads.
        """
        if self.loss_name == "gram":
            flows = [
                fsp_matrix(*(shown.hidden[at] for at in _as_tuple(layer)))
                for shown, layer in self._sides(teacher, student)
            ]
            return gram_mse(flows[0], flows[1], student.mask)
        theirs, ours = (self._layer(shown, layer) for shown, layer in self._sides(teacher, student))
        if project is not None:
            ours = project(ours)
        if self.loss_name == "relation":
            return relation_divergence(theirs, ours, self.heads, student.mask)
        losses: dict[Loss, Callable[..., Tensor]] = {"mse": hidden_mse, "cosine": hidden_cosine}
        if self.feature == Feature.ATTENTION:
            losses = {"mse": attention_mse, "cross-entropy": attention_cross_entropy}
        return losses[self.loss_name](theirs, ours, student.mask)

    def check(self, teacher: LayerOutputs, student: LayerOutputs) -> None:
        """Raise UserError where a layer is not there, or values cannot be cut as asked."""
        for whose, shown, layer in zip(("teacher", "student"), (teacher, student), self._layers, strict=True):
            parts, first = self._parts(shown)
            for at in _as_tuple(layer):
                if not first <= at < first + len(parts):
                    raise must_be(
                        f"The layer of the {whose} in a match of '{self.feature}'",
                        f"in [{first}, {first + len(parts) - 1}]" if parts else "left out: this model shows none",
                        at,
                    )
            if self.loss_name == "relation" and parts[0].shape[-1] % self.heads:
                raise must_be("heads", f"a divisor of the {whose}'s {parts[0].shape[-1]} values", self.heads)

    def widths(self, teacher: LayerOutputs, student: LayerOutputs) -> tuple[int, int] | None:
        """(student's, teacher's) where hidden states of different widths are compared number by number."""
        if self.feature != Feature.HIDDEN or self.loss_name == "gram":
            return None
        theirs, ours = (self._layer(shown, layer) for shown, layer in self._sides(teacher, student))
        return None if theirs.shape[-1] == ours.shape[-1] else (ours.shape[-1], theirs.shape[-1])

    @property
    def _layers(self) -> tuple[Layer, Layer]:
        return self.teacher, self.student

    def _sides(
        self, teacher: LayerOutputs, student: LayerOutputs
    ) -> tuple[tuple[LayerOutputs, Layer], tuple[LayerOutputs, Layer]]:
        return (teacher, self.teacher), (student, self.student)

    def _layer(self, shown: LayerOutputs, layer: Layer) -> Tensor:
        parts, first = self._parts(shown)
        (at,) = _as_tuple(layer)
        return parts[at - first]

    def _parts(self, shown: LayerOutputs) -> tuple[Sequence[Tensor], int]:
        """What is compared, and the number of its first layer."""
        if self.feature == Feature.HIDDEN:
            return shown.hidden, 0
        return (shown.attention if self.feature == Feature.ATTENTION else shown.values), 1


def uniform_layers(teacher: int, student: int) -> list[tuple[int, int]]:
    """(teacher, student) layers for `student` blocks spread evenly over `teacher` ones: the last is with the last."""
    return [(round(layer * teacher / student), layer) for layer in range(1, student + 1)]


def _as_tuple(layer: Layer) -> tuple[int, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


def check_same_tokens(teacher: LayerOutputs, student: LayerOutputs) -> None:
    """Raise UserError where the two read rows as different tokens, which no layer by layer comparison survives."""
    if teacher.mask.shape != student.mask.shape or not bool((teacher.mask == student.mask).all()):
        raise UserError(
            "The student and the teacher read the same text as different tokens, so layers cannot be matched; "
            "take models of one tokenizer, or leave out hidden, attention, values and matches."
        )
