"""A step changes a model: it runs it, reshapes it, or both. Its dataclass is one entry of a recipe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from laconic.allocate import Plan
from laconic.calibrate import Calibration, LayerStats
from laconic.calibrate.corpus import Corpus
from laconic.model import LanguageModel
from laconic.typed import Typed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The record of what a step did to a model.

    Args:
        plan: the method of each targeted layer; None where it stayed dense. Empty for steps without methods.
        before: bytes of each targeted matrix in the stored dtype before the step. A tied matrix counts once, or not at
            all where its other place keeps it.
        after: the same after the step.
        untied: layers that were tied to another matrix before and no longer are, so that the file holds both.
        predicted_loss: Σ ½ tr(F E C E^T) of what was chosen, nats per prediction; None if it was not predicted.
        dropped: numbers of the dropped blocks by stack, counted before the step, and parts of blocks (`4.ffn`).
        found: other results as plain values, such as losses by step, or divergences before and after.
        files: files to save beside the model, by path: curves, logs.
        now: the model to go on with, if it is another than the given one.

    Example:
        >>> Outcome(plan={}, before={"a": 8, "b": 8}, after={"a": 2, "b": 4}).nbytes
        6
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
        """Bytes of the targeted matrices after the step."""
        return sum(self.after.values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the targeted matrices before the step."""
        return sum(self.before.values())


@dataclass(frozen=True, kw_only=True)
class Step(ABC, metaclass=Typed):
    """One entry of a recipe. Types and bounds of its fields are checked at construction (`laconic.typed`)."""

    name: ClassVar[str]
    family: ClassVar[str] = ""
    """The kind of compression that reports group models by; empty for a step that only trains."""
    example: ClassVar[str] = ""
    """Parameters of an example, as `--method` takes them."""
    example_needs_data: ClassVar[bool] = True
    """Whether that cannot do without calibration data."""

    @property
    def needs_original(self) -> bool:
        """True if `apply` compares the model with `LanguageModel.original`."""
        return False

    @property
    def prepares(self) -> bool:
        """True if the step makes the model to be compressed, which later steps then compare with."""
        return False

    @property
    @abstractmethod
    def needs_data(self) -> bool:
        """True if `apply` needs calibration data."""

    @abstractmethod
    def check(self, lm: LanguageModel) -> None:
        """Raise UserError if `apply` would fail for the structure of `lm`, whose weights may be absent."""

    @property
    def needs_labels(self) -> bool:
        """True if `apply` learns from the labels of the data."""
        return False

    def check_labels(self, lm: LanguageModel, corpus: Corpus, seed: int) -> None:
        """Raise UserError if `apply` would fail for the labels of `corpus`.

        Args:
            lm: the model; its weights may be absent.
            corpus: the rows with their labels.
            seed: that the rows are drawn with.
        """

    def check_data(self, data: Calibration | None) -> None:
        """Raise UserError if `apply` would fail for the data alone; called before the work of the first step."""

    @abstractmethod
    def dry_run(self, lm: LanguageModel) -> LanguageModel | None:
        """Give `lm`, which is on the meta device and has passed `check`, the structure that `apply` leaves.

        What depends on weights or data is guessed: targeted layers count as compressed, and the last blocks as dropped.

        Returns:
            Another model where `apply` goes on with one; else None.
        """

    @abstractmethod
    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Change the model in place.

        Args:
            lm: the model; it has passed `check`.
            data: calibration data; None if the step needs none.

        Returns:
            What was done.

        Raises:
            UserError: data is needed and missing or empty, or the step cannot be done on `lm`.
        """

    def apply_with(self, lm: LanguageModel, stats: Mapping[str, LayerStats], data: Calibration | None) -> Outcome:
        """As `apply`, on statistics that were collected before; a step that collects none ignores them.

        Args:
            lm: the model, changed in place.
            stats: by site, all that `apply` would collect.
            data: the calibration data.
        """
        return self.apply(lm, data)
