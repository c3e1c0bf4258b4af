"""Optional libraries that a kind of checkpoint is read by: there in a version that will do, or one sentence.

The tokenizer beside a model: there and whole, or not there; a damaged one is an error.

Texts in lower case, whatever the tokenizer itself does: `do_lower_case` of older folders.

What can be asked of anything that is given as a model, of whichever kind it is.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from packaging.version import Version
from tokenizers.normalizers import Lowercase, Normalizer, Sequence
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from laconic.errors import UserError, install, must_be, reason_of
from laconic.model.checkpoints.code import check_tokenizer_code
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.sentences import EmbeddingConfig


def require_package(package: str, what: str, *, extra: str | None = None, least: str | None = None) -> None:
    """Raise UserError where `package` is not installed, or older than `least`.

    Args:
        package: the name that pip knows it by.
        what: what needs it; the beginning of the sentence.
        extra: of laconic, which brings it.
    """
    ask = install(extra) if extra else f"pip install '{package}{f'>={least}' if least else ''}'"
    try:
        there = version(package)
    except PackageNotFoundError as error:
        raise UserError(f"{what} needs {package}, which is not installed: {ask}.") from error
    if least is not None and Version(there) < Version(least):
        raise UserError(f"{what} needs {package} {least} or later, and {there} is installed: {ask}.")


CONFIG = "tokenizer_config.json"
WHOLE = "tokenizer.json"
FILES = (CONFIG, WHOLE, "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
         "spm.model", "source.spm")  # fmt: skip
"""What a tokenizer is saved in; any of them says that there is one."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError)


def check_tokenizer(place: Location) -> None:
    """Raise UserError where the tokenizer at `place` needs code that comes with it, its files are no JSON, or it says a
    length that is no number."""
    if (raw := place.json(CONFIG)) is not None:
        check_tokenizer_code(raw, place.source)
        longest = raw.get("model_max_length")
        if longest is not None and not (type(longest) in (int, float) and longest >= 1):
            what = f"In the tokenizer_config.json of '{place.source}', model_max_length"
            raise must_be(what, "a number of tokens, at least 1", longest)
    if place.folder is not None:
        place.json(WHOLE)


def read_tokenizer(place: Location) -> PreTrainedTokenizerBase | None:
    """The tokenizer at `place`; a model may come without, and what needs one says so.

    Raises:
        UserError: it needs code that comes with it, or is there and cannot be read.
    """
    check_tokenizer(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place.name,
            revision=place.revision,
            subfolder=place.subfolder,
            local_files_only=not place.fetches,
            trust_remote_code=False,
        )
    except Exception as error:
        # The package tokenizers tells of a file that it cannot read by a bare Exception.
        if not isinstance(error, _DAMAGED) and type(error) is not Exception:
            raise
        found = next((name for name in FILES if place.file(name) is not None), None)
        if found is None:
            return None
        raise UserError(
            f"The tokenizer of the model '{place.source}' cannot be read ({found} is there): {reason_of(error)}; "
            "fetch it again, or take its files away."
        ) from error
    # What is saved with it refers to no code.
    tokenizer.init_kwargs.pop("auto_map", None)
    # From a folder without one, transformers makes up an empty tokenizer of the model's kind.
    files = {CONFIG, *tokenizer.vocab_files_names.values()}
    return tokenizer if place.folder is None or _has_any(place.folder, files) else None


def _has_any(folder: Path, files: set[str]) -> bool:
    return any((folder / file).is_file() for file in files)


def lower_case(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, changed in place so that it lowers what it reads, as sentence-transformers does and saves it.

    Raises:
        UserError: it is none that normalizes by the library tokenizers.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"sentence_bert_config.json asks for texts in lower case, which a {type(tokenizer).__name__} cannot be "
            "made to read; save its fast tokenizer in the folder."
        )
    backend = tokenizer.backend_tokenizer
    before = backend.normalizer
    if before is None:
        backend.normalizer = Lowercase()
    elif not _lowers(before):
        backend.normalizer = Sequence([Lowercase(), before])
    return tokenizer


def _lowers(normalizer: Normalizer) -> bool:
    said = json.loads(normalizer.__getstate__())
    return any(
        part.get("type") == "Lowercase" or part.get("lowercase") is True
        for part in (said, *said.get("normalizers", ()))
    )


TARGET_TOKENIZER = "target_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ABC):
    """A model that is not loaded yet. Everything that can be found wrong without its numbers is found by `check`.

    place:    where it lies.
    declared: what sentence-transformers declares of it; None where it declares nothing.
    """

    place: Location
    declared: EmbeddingConfig | None = None

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
        of_targets = None if target is None or not target.is_dir() else read_tokenizer(Location(str(target), target))
        return self.lowered(read_tokenizer(self.place)) if own is None else own, of_targets

    def lowered(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer, reading everything in lower case where that is declared."""
        lowers = self.declared is not None and self.declared.settings.lower_case
        return lower_case(tokenizer) if lowers and tokenizer is not None else tokenizer
