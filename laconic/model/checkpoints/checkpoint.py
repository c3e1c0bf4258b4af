"""The interface of a checkpoint of any kind, and what all kinds share: the tokenizer and optional packages."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

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

TARGET_TOKENIZER = "target_tokenizer"
"""The subfolder with the tokenizer of an encoder-decoder's targets, where they have one of their own."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "spm.model", "source.spm",
)  # fmt: skip
"""A folder with any of these has a tokenizer."""
_TOKENIZER_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ABC):
    """A model that is not loaded yet. `check` finds every mistake that can be found without weights.

    Args:
        location: where its files are.
        embedding_config: the sentence-transformers modules behind it; None where there are none.
    """

    location: Location
    embedding_config: EmbeddingConfig | None = None

    @property
    def source(self) -> str:
        """The name that the user gave; errors use it."""
        return self.location.source

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """Read the configuration of the plain model, without mention of code, adapters or quantization.

        Raises:
            UserError: it is missing or invalid, or needs code that comes with the model.
        """

    @abstractmethod
    def check(self, config: PreTrainedConfig, given: Collection[str] = ()) -> None:
        """Check that the weights can be loaded.

        Args:
            config: what `config` returned.
            given: names of tensors that come from elsewhere and may be missing.

        Raises:
            UserError: weights are missing, damaged or do not match the configuration, or a package is not installed.
        """

    @abstractmethod
    def load(self, config: PreTrainedConfig, given: Collection[str] = ()) -> PreTrainedModel:
        """Load the model in float32 on the CPU; arguments and errors as for `check`."""

    @abstractmethod
    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """The dtype that the weights are stored in, and are saved in again."""

    @property
    def has_weights(self) -> bool:
        """False where there is only a configuration."""
        return True

    def tokenizers(
        self, own: PreTrainedTokenizerBase | None = None
    ) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
        """Load the tokenizer, and that of the targets where they have one of their own.

        Args:
            own: a tokenizer to use in place of the first, which is not read then.

        Returns:
            Both; None for one that is not there.

        Raises:
            UserError: a tokenizer needs code that comes with the model, or cannot be read.
        """
        folder = self.location.folder
        target = None if folder is None else folder / TARGET_TOKENIZER
        of_targets = None if target is None or not target.is_dir() else read_tokenizer(Location(str(target), target))
        return self.apply_lower_case(read_tokenizer(self.location)) if own is None else own, of_targets

    def apply_lower_case(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer, changed to lower-case its input where sentence-transformers asks for it."""
        lowers = self.embedding_config is not None and self.embedding_config.settings.lower_case
        return lower_case(tokenizer) if lowers and tokenizer is not None else tokenizer


def require_package(package: str, what: str, *, extra: str | None = None, least: str | None = None) -> None:
    """Check that an optional package is installed.

    Args:
        package: its name on PyPI.
        what: what needs it; the beginning of the error.
        extra: the extra of laconic that installs it, where there is one.
        least: the oldest version that will do.

    Raises:
        UserError: it is not installed, or older than `least`.
    """
    remedy = install(extra) if extra else f"pip install '{package}{f'>={least}' if least else ''}'"
    try:
        installed = version(package)
    except PackageNotFoundError as error:
        raise UserError(f"{what} needs {package}, which is not installed: {remedy}.") from error
    if least is not None and Version(installed) < Version(least):
        raise UserError(f"{what} needs {package} {least} or later, and {installed} is installed: {remedy}.")


def check_tokenizer(location: Location) -> None:
    """Check the tokenizer files without building the tokenizer.

    Raises:
        UserError: the tokenizer needs code that comes with it, a file is no JSON, or model_max_length is no number.
    """
    if (raw := location.json(TOKENIZER_CONFIG)) is not None:
        check_tokenizer_code(raw, location.source)
        longest = raw.get("model_max_length")
        if longest is not None and not (type(longest) in (int, float) and longest >= 1):
            what = f"In the tokenizer_config.json of '{location.source}', model_max_length"
            raise must_be(what, "a number of tokens, at least 1", longest)
    if location.folder is not None:
        location.json("tokenizer.json")


def read_tokenizer(location: Location) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer of a model; None where it has none.

    Raises:
        UserError: it needs code that comes with it, or cannot be read.
    """
    check_tokenizer(location)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location.name,
            revision=location.revision,
            subfolder=location.subfolder,
            local_files_only=not location.downloads,
            trust_remote_code=False,
        )
    except Exception as error:
        # The package tokenizers raises a bare Exception for a file that it cannot read.
        if not isinstance(error, _TOKENIZER_ERRORS) and type(error) is not Exception:
            raise
        found = next((name for name in TOKENIZER_FILES if location.file(name) is not None), None)
        if found is None:
            return None
        raise UserError(
            f"The tokenizer of the model '{location.source}' cannot be read ({found} is there): {reason_of(error)}; "
            "fetch it again, or take its files away."
        ) from error
    # What is saved with it refers to no code.
    tokenizer.init_kwargs.pop("auto_map", None)
    # From a folder without a tokenizer, transformers makes an empty one of the model's kind.
    files = {TOKENIZER_CONFIG, *tokenizer.vocab_files_names.values()}
    folder = location.folder
    return tokenizer if folder is None or any((folder / file).is_file() for file in files) else None


def lower_case(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Change a tokenizer in place to lower-case its input, as sentence-transformers does for `do_lower_case`.

    Raises:
        UserError: it is no fast tokenizer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"sentence_bert_config.json asks for texts in lower case, which a {type(tokenizer).__name__} cannot be "
            "made to read; save its fast tokenizer in the folder."
        )
    backend = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    if normalizer is None:
        backend.normalizer = Lowercase()
    elif not _lowers(normalizer):
        backend.normalizer = Sequence([Lowercase(), normalizer])
    return tokenizer


def _lowers(normalizer: Normalizer) -> bool:
    state = json.loads(normalizer.__getstate__())
    parts = (state, *state.get("normalizers", ()))
    return any(part.get("type") == "Lowercase" or part.get("lowercase") is True for part in parts)
