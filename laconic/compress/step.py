"""A step changes a model: it runs it, reshapes it, or both. Its dataclass is the line of the recipe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from laconic.allocate import Plan
from laconic.calibrate import Calibration
from laconic.calibrate.corpus import Corpus
from laconic.model import LanguageModel
from laconic.typed import Typed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step did.

    plan:           the method of each targeted site; None where it stayed dense. Empty where no method was used.
    before, after:  bytes of each targeted matrix in the stored dtype; a matrix that was tied counts once before, or not
                    at all where its other place keeps it.
    untied:         sites that were tied to another matrix before and no longer are, so the file holds both.
    predicted_loss: Σ ½ tr(F E C E^T) of what was chosen, nats per prediction; None where it was not predicted.
    dropped:        by stack the numbers of the blocks that went, as they were before, and of parts of blocks (`4.ffn`).
    found:          what else is worth telling, as plain values: losses by step, divergences before and after.
    files:          by path, what is to lie beside the saved model: curves, logs.
    now:            the model from here on, where it is another than the one that was given.
    """

    plan: Plan
    before: dict[str, int]
    after: dict[str, int]
    untied: tuple[str, ...] = ()
    predicted_loss: float | None = None
    dropped: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    now: LanguageModel | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the targeted matrices now."""
        return sum(self.after.values())

    @property
    def dense_nbytes(self) -> int:
        """And before the step."""
        return sum(self.before.values())


@dataclass(frozen=True, kw_only=True)
class Step(ABC, metaclass=Typed):
    """One line of a recipe. What its fields are given is judged by their annotations (`laconic.typed`)."""

    name: ClassVar[str]
    family: ClassVar[str] = ""
    """The kind of compression that reports group models by; empty for a step that only trains."""
    example: ClassVar[str] = ""
    """Parameters of an example, as `--method` takes them."""
    example_needs_data: ClassVar[bool] = True
    """Whether that cannot do without calibration data."""

    @property
    def needs_original(self) -> bool:
        """True where `apply` compares the model with `LanguageModel.original`."""
        return False

    @property
    def prepares(self) -> bool:
        """True where what it leaves is what later steps compare with: it makes the model that is to be made smaller."""
        return False

    @property
    @abstractmethod
    def needs_data(self) -> bool:
        """True when `apply` cannot do without calibration data."""

    @abstractmethod
    def check(self, lm: LanguageModel) -> None:
        """Raise UserError where `apply` would for the structure of `lm` alone; its weights may be absent."""

    @property
    def needs_labels(self) -> bool:
        """True where `apply` learns from the labels of the data."""
        return False

    def check_labels(self, lm: LanguageModel, corpus: Corpus, seed: int) -> None:
        """Raise UserError where `apply` would for the labels of `corpus`; the weights of `lm` may be absent."""

    def check_data(self, data: Calibration | None) -> None:
        """Raise UserError where `apply` would for the data alone, which is then found before the first step's work."""

    @abstractmethod
    def dry_run(self, lm: LanguageModel) -> LanguageModel | None:
        """Give `lm`, which is on the meta device and has passed `check`, the structure that `apply` leaves.

        What the weights or the data decide is guessed: what is targeted is compressed, and what is dropped lies last.
        Returns another model where `apply` goes on with one.
        """

    @abstractmethod
    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Change the model in place and say what was done."""
