"""What can be asked of anything that is given as a model, of whichever kind it is."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from laconic.model.checkpoints.place import Place
from laconic.model.checkpoints.sentences import Declared
from laconic.model.checkpoints.sentences.lowering import lowering
from laconic.model.checkpoints.tokenizer import read_tokenizer

TARGET_TOKENIZER = "target_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ABC):
    """A model that is not loaded yet. Everything that can be found wrong without its numbers is found by `check`.

    place:    where it lies.
    declared: what sentence-transformers declares of it; None where it declares nothing.
    """

    place: Place
    declared: Declared | None = None

    @property
    def source(self) -> str:
        """As the user named it; what errors call it."""
        return self.place.source

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """That of the model as it is computed with: nothing in it asks for code, an adapter or codes of weights.

        Raises:
            UserError: it is not there, is none, or needs code that comes with the model.
        """

    @abstractmethod
    def check(self, config: PreTrainedConfig, given: Collection[str] = ()) -> None:
        """Raise UserError where the weights cannot be read: missing, damaged, not those of the configuration, or a
        library for them is not installed.

        config is what `config` returned; given are names of tensors that come from elsewhere and may be missing.
        """

    @abstractmethod
    def load(self, config: PreTrainedConfig, given: Collection[str] = ()) -> PreTrainedModel:
        """The model in float32, on the CPU.

        given are names of tensors that come from elsewhere and may be missing.

        Raises:
            UserError: as `check`, or the weights do not fit the configuration.
        """

    @abstractmethod
    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """The dtype that its weights are in, and are saved in again."""

    @property
    def has_weights(self) -> bool:
        """False where there is only a configuration, which random weights can be drawn for."""
        return True

    def tokenizers(
        self, own: PreTrainedTokenizerBase | None = None
    ) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
        """Its tokenizer, and that of its targets where they have one of their own; None for what is not there.

        `own` stands in for the first, which is not read then.

        Raises:
            UserError: a tokenizer needs code that comes with the model, or is there and cannot be read.
        """
        folder = self.place.folder
        target = None if folder is None else folder / TARGET_TOKENIZER
        of_targets = None if target is None or not target.is_dir() else read_tokenizer(Place(str(target), target))
        return self.lowered(read_tokenizer(self.place)) if own is None else own, of_targets

    def lowered(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer, reading everything in lower case where that is declared."""
        lowers = self.declared is not None and self.declared.settings.lower_case
        return lowering(tokenizer) if lowers and tokenizer is not None else tokenizer
