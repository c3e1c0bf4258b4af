"""What can be asked of anything that is given as a model, of whichever kind it is."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from laconic.model.checkpoints.code import check_tokenizer_code
from laconic.model.checkpoints.place import Place
from laconic.model.checkpoints.sentences import Declared
from laconic.model.checkpoints.sentences.lowering import lowering

TARGET_TOKENIZER = "target_tokenizer"
_TOKENIZER_CONFIG = "tokenizer_config.json"


class Checkpoint(ABC):
    """A model that is not loaded yet. Everything that can be found wrong without its numbers is found by `check`."""

    @property
    @abstractmethod
    def place(self) -> Place:
        """Where it lies."""

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """That of the model as it is computed with: nothing in it asks for code, an adapter or codes of weights.

        Raises:
            UserError: it is not there, is none, or needs code that comes with the model.
        """

    @abstractmethod
    def check(self, config: PreTrainedConfig) -> None:
        """Raise UserError where the weights cannot be read: missing, damaged, or a library for them is not installed.

        config is what `config` returned.
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
    def declared(self) -> Declared | None:
        """What sentence-transformers declares of it; None where it declares nothing."""
        return None

    @property
    def has_weights(self) -> bool:
        """False where there is only a configuration, which random weights can be drawn for."""
        return True

    def tokenizers(self) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
        """Its tokenizer, and that of its targets where they have one of their own; None for what is not there.

        Raises:
            UserError: the tokenizer needs code that comes with the model.
        """
        folder = self.place.folder
        target = None if folder is None else folder / TARGET_TOKENIZER
        of_targets = None if target is None or not target.is_dir() else read_tokenizer(Place(str(target), target))
        return self.lowered(read_tokenizer(self.place)), of_targets

    def lowered(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer, reading everything in lower case where that is declared."""
        lowers = self.declared is not None and self.declared.settings.lower_case
        return lowering(tokenizer) if lowers and tokenizer is not None else tokenizer


def check_tokenizer(place: Place) -> None:
    """Raise UserError where the tokenizer at `place` needs code that comes with it."""
    if (raw := place.json(_TOKENIZER_CONFIG)) is not None:
        check_tokenizer_code(raw, place.source)


def read_tokenizer(place: Place) -> PreTrainedTokenizerBase | None:
    """The tokenizer at `place`; a model may come without, and what needs one says so.

    Raises:
        UserError: it needs code that comes with it.
    """
    check_tokenizer(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place.name, revision=place.revision, subfolder=place.subfolder, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError):
        return None
    # What is saved with it refers to no code.
    tokenizer.init_kwargs.pop("auto_map", None)
    # From a folder without one, transformers makes up an empty tokenizer of the model's kind.
    files = {_TOKENIZER_CONFIG, *tokenizer.vocab_files_names.values()}
    return tokenizer if place.folder is None or _has_any(place.folder, files) else None


def _has_any(folder: Path, files: set[str]) -> bool:
    return any((folder / file).is_file() for file in files)
