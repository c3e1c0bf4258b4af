"""The base class of all steps, and the record of the changes that a step makes. A step is one entry of a recipe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from laconic.allocate import Plan
from laconic.calibrate import Calibration, LayerStats, Statistic
from laconic.calibrate.corpus import Corpus
from laconic.methods import Method
from laconic.model import LanguageModel, Site
from laconic.typed import Typed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The record of the changes that a step made to a model.

    Args:
        plan: the method of each targeted layer; None if it stayed dense. Empty for steps without methods.
        before: bytes of each targeted matrix in the stored dtype, before the step. Tied matrices are counted once; if
            one of them is not targeted, they are counted as 0.
        after: the same after the step.
        untied: layers whose matrix was tied to another one before the step and is stored separately after it.
        predicted_loss: Σ ½ tr(F E C E^T) over the chosen solutions, in nats per prediction; None if not predicted.
        dropped: numbers of the dropped blocks by stack, counted before the step, and dropped parts of blocks (`4.ffn`).
        found: other results as plain values, such as losses by step, or divergences before and after.
        files: contents of files to save beside the model, by path, such as training logs.
        now: the new model, if the step replaced the model; None if it changed the model in place.

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
    """One entry of a recipe. Types and bounds of its fields are checked at construction (`laconic.typed`).

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Freeze(Step):
        ...     name, needs_data = "freeze", False
        ...     def check(self, lm): pass
        ...     def dry_run(self, lm): pass
        ...     def apply(self, lm, data):
        ...         lm.model.requires_grad_(False)
        ...         return Outcome(plan={}, before={}, after={})
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> lm = LanguageModel.of(BertModel(BertConfig(vocab_size=50, **shape)))
        >>> Freeze().apply(lm, None).nbytes, any(tensor.requires_grad for tensor in lm.model.parameters())
        (0, False)
    """

    name: ClassVar[str]
    family: ClassVar[str] = ""
    """The kind of compression, by which reports group models; empty for a step that only trains."""
    example: ClassVar[str] = ""
    """Parameters of an example, in the notation of `--method`."""
    size_parameters: ClassVar[tuple[str, ...]] = ()
    """The parameters of which one sets the size, in place of `keep` of a method; empty for a step without a size."""
    example_needs_data: ClassVar[bool] = True
    """Whether the example needs calibration data."""

    @property
    def needs_original(self) -> bool:
        """True if `apply` compares the model with `LanguageModel.original`."""
        return False

    @property
    def prepares(self) -> bool:
        """True if the step makes the model that later steps treat as the original, as fine-tuning does."""
        return False

    @property
    def families(self) -> frozenset[str]:
        """The kinds of compression of the step and its method."""
        return frozenset({self.family} if self.family else ())

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that the step compresses matrices by; empty for most steps."""
        return ()

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        """The types of statistics that `apply` collects."""
        return frozenset()

    @property
    def collects_stats(self) -> bool:
        """True if `apply` collects `needs` once, on the unchanged model; `apply_with` then accepts statistics."""
        return False

    def sites(self, lm: LanguageModel) -> list[Site]:
        """The layers of `lm` whose statistics `apply` collects, for a step with `collects_stats`."""
        return []

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        """The reason why the step needs the whole model in memory, and a remedy, as clauses; None if it does not.

        Args:
            lm: the model before the step, which has passed `check`; its weights need not be loaded.
        """
        return "it changes the whole model at once; leave out the step"

    @property
    @abstractmethod
    def needs_data(self) -> bool:
        """True if `apply` needs calibration data."""

    @abstractmethod
    def check(self, lm: LanguageModel) -> None:
        """Raise UserError if `apply` would fail for the structure of `lm`, whose weights need not be loaded."""

    @property
    def needs_labels(self) -> bool:
        """True if `apply` learns from the labels of the data."""
        return False

    def check_labels(self, lm: LanguageModel, corpus: Corpus, seed: int) -> None:
        """Raise UserError if `apply` would fail for the labels of `corpus`.

        Args:
            lm: the model; its weights need not be loaded.
            corpus: the rows with their labels.
            seed: seed that the rows are drawn with.
        """

    def check_data(self, data: Calibration | None) -> None:
        """Raise UserError if `apply` would fail because of the data; called before the first step runs."""

    @abstractmethod
    def dry_run(self, lm: LanguageModel) -> LanguageModel | None:
        """Give a model without weights the structure that `apply` would give it.

        Choices that depend on weights or data are guessed: all targeted layers are compressed, the last blocks dropped.

        Args:
            lm: the model on the meta device, changed in place; it has passed `check`.

        Returns:
            The new model if `apply` replaces the model by another one; else None.
        """

    def check_and_dry_run(self, lm: LanguageModel) -> LanguageModel | None:
        """Do `check` and `dry_run` on the same model; a step overrides this to share work between them.

        Args:
            lm: the model on the meta device, changed in place.

        Returns:
            As `dry_run`.

        Raises:
            UserError: as `check`.
        """
        self.check(lm)
        return self.dry_run(lm)

    @abstractmethod
    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Change the model in place.

        Args:
            lm: the model; it has passed `check`.
            data: calibration data; None if the step needs none.

        Returns:
            A record of the changes.

        Raises:
            UserError: data is needed and missing or empty, or the step cannot be done on `lm`.
        """

    def apply_with(self, lm: LanguageModel, stats: Mapping[str, LayerStats], data: Calibration | None) -> Outcome:
        """Do the same as `apply` with statistics that were collected before; a step that collects none ignores them.

        Args:
            lm: the model, changed in place.
            stats: all statistics that `apply` would collect, by layer name.
            data: the calibration data.
        """
        return self.apply(lm, data)
