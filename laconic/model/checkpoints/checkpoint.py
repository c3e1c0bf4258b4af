"""The interface of a checkpoint of any kind, and functions that all kinds use: loading weights and the tokenizer."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version
from safetensors import SafetensorError
from tokenizers.normalizers import Lowercase, Normalizer, Sequence
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from laconic.errors import UserError, install, must_be, reason_of
from laconic.model.checkpoints.configuration import check_tokenizer_code
from laconic.model.checkpoints.fit import check_report
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.sentences import EmbeddingConfig
from laconic.model.checkpoints.weights import Weights
from laconic.model.file_sizes import FileSizes
from laconic.model.stock import MODEL_ERRORS

TARGET_TOKENIZER = "target_tokenizer"
"""The subfolder with the tokenizer of an encoder-decoder's targets, if they have a separate one."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "spm.model", "source.spm",
)  # fmt: skip
"""A folder with any of these has a tokenizer."""
Tokenizers = tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]
"""The tokenizer of a model, and the tokenizer of the targets if they have a separate one."""
_TOKENIZER_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ABC):
    """A model that is not loaded yet. `check` finds every error that can be found without reading weights.

    Args:
        location: the folder or the repository of its files.
        embedding_config: the sentence-transformers modules after the transformer, or None.
    """

    location: Location
    embedding_config: EmbeddingConfig | None = None

    @property
    def source(self) -> str:
        """The name that the user gave; errors use it."""
        return self.location.source

    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """Read the configuration of the plain model, without references to custom code, adapters or quantization.

        Raises:
            UserError: it is missing or invalid, or needs code that comes with the model.
        """

    @abstractmethod
    def check(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> None:
        """Check that the weights can be loaded.

        Args:
            config: the result of `config`.
            external_names: names of tensors that come from elsewhere and may be missing.

        Raises:
            UserError: weights are missing, damaged or do not match the configuration, or a package is not installed.
        """

    @abstractmethod
    def load(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> PreTrainedModel:
        """Load the model in float32 on the CPU; arguments and errors as for `check`."""

    def load_packed(self, config: PreTrainedConfig) -> PreTrainedModel:
        """As `load`, but layers keep the codes of another library where a format of laconic holds the same numbers."""
        return self.load(config)

    def file_sizes(self, model: PreTrainedModel) -> FileSizes | None:
        """The bytes in the files, if another library wrote codes to them; else None.

        Args:
            model: the loaded model.
        """
        return None

    @abstractmethod
    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """The dtype that the weights are stored in, and are saved in again."""

    def weights_in_parts(self, config: PreTrainedConfig) -> Weights:
        """The safetensors files of the plain or compressed model, from which single tensors can be read.

        Args:
            config: the result of `config`.

        Raises:
            UserError: weights are missing or damaged, or of a kind that can only be loaded whole.
        """
        raise no_parts_error(self.source, "adapters and GGUF files are read as a whole")

    @property
    def has_weights(self) -> bool:
        """False if there is only a configuration."""
        return True

    def tokenizers(self, own: PreTrainedTokenizerBase | None = None) -> Tokenizers:
        """Load the tokenizer of the model, and the tokenizer of the targets if they have a separate one.

        Args:
            own: a tokenizer to use instead of the first, which is then not read.

        Returns:
            Both; None for a tokenizer that does not exist.

        Raises:
            UserError: a tokenizer needs code that comes with the model, or cannot be read.
        """
        folder = self.location.folder
        target = None if folder is None else folder / TARGET_TOKENIZER
        has_target = target is not None and target.is_dir()
        target_tokenizer = read_tokenizer(Location(str(target), target)) if has_target else None
        return self.apply_lower_case(read_tokenizer(self.location)) if own is None else own, target_tokenizer

    def apply_lower_case(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer; changed to lower-case its input if the sentence-transformers configuration says so."""
        lowers = self.embedding_config is not None and self.embedding_config.settings.lower_case
        return lower_case(tokenizer) if lowers and tokenizer is not None else tokenizer


@contextmanager
def report_load_errors(source: str, remedy: str = "use files that were saved together") -> Iterator[None]:
    """A context in which errors of transformers and safetensors become a `UserError`.

    Args:
        source: the model that is loaded, as the error names it.
        remedy: the end of the error.

    Raises:
        UserError: the block raised an exception.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, *MODEL_ERRORS) as error:
        raise UserError(f"The weights of '{source}' cannot be loaded: {reason_of(error)}; {remedy}.") from error


def load_checked(
    model_class: Any,
    config: PreTrainedConfig,
    source: str,
    *,
    external_names: Collection[str] = (),
    integer_names: Callable[[], Collection[str]] = tuple,
    remedy: str = "use files that were saved together",
    **options: Any,
) -> PreTrainedModel:
    """Load a model in float32 by `from_pretrained`, and check that every tensor and every parameter has a counterpart.

    Args:
        model_class: a class of transformers with `from_pretrained`.
        config: the configuration of the model.
        source: the model, as errors name it.
        external_names: as in `check_report`.
        integer_names: as in `check_report`.
        remedy: the end of the error if the weights cannot be loaded.
        **options: more arguments of `from_pretrained`, including `pretrained_model_name_or_path`.

    Raises:
        UserError: the weights cannot be loaded; or a tensor is missing, unused or of another shape.
    """
    with report_load_errors(source, remedy):
        model, report = model_class.from_pretrained(
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            # check_report raises an error for mismatched shapes.
            ignore_mismatched_sizes=True,
            **options,
        )
    check_report(model, report, source, integer_names, external_names)
    return model


def no_parts_error(source: str, reason: str) -> UserError:
    """The error for a model that cannot be streamed.

    Args:
        source: the model.
        reason: a clause.
    """
    return UserError(
        f"The model '{source}' cannot be streamed, as {reason}: use it without streaming, or save it as plain "
        "safetensors first (from_pretrained, then save_pretrained)."
    )


def require_package(package: str, subject: str, *, extra: str | None = None, min_version: str | None = None) -> None:
    """Check that an optional package is installed.

    Args:
        package: its name on PyPI.
        subject: the thing that needs it; the beginning of the error.
        extra: the extra of laconic that installs it; None for none.
        min_version: the oldest supported version; None for any.

    Raises:
        UserError: it is not installed, or older than `min_version`.
    """
    remedy = install(extra) if extra else f"pip install '{package}{f'>={min_version}' if min_version else ''}'"
    try:
        installed = version(package)
    except PackageNotFoundError as error:
        raise UserError(f"{subject} needs {package}, which is not installed: {remedy}.") from error
    if min_version is not None and Version(installed) < Version(min_version):
        raise UserError(f"{subject} needs {package} {min_version} or later, and {installed} is installed: {remedy}.")


def check_tokenizer(location: Location) -> None:
    """Check the tokenizer files without building the tokenizer.

    Raises:
        UserError: the tokenizer needs code that comes with the model, a file is not JSON, or model_max_length is not
            a number.
    """
    if (raw := location.json(TOKENIZER_CONFIG)) is not None:
        check_tokenizer_code(raw, location.source)
        longest = raw.get("model_max_length")
        if longest is not None and not (type(longest) in (int, float) and longest >= 1):
            place = f"In the tokenizer_config.json of '{location.source}', model_max_length"
            raise must_be(place, "a number of tokens, at least 1", longest)
    if location.folder is not None:
        location.check_json("tokenizer.json")


def read_tokenizer(location: Location) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer of a model; None if it has none.

    Raises:
        UserError: it needs code that comes with the model, or cannot be read.
    """
    check_tokenizer(location)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location.name, **location.options)
    except Exception as error:
        # The package tokenizers raises a bare Exception for a file that it cannot read.
        if not isinstance(error, _TOKENIZER_ERRORS) and type(error) is not Exception:
            raise
        file = next((name for name in TOKENIZER_FILES if location.file(name) is not None), None)
        if file is None:
            return None
        raise UserError(
            f"The tokenizer of the model '{location.source}' cannot be read although it has {file}: "
            f"{reason_of(error)}; fetch it again, or remove its files."
        ) from error
    # The saved tokenizer must not refer to code.
    tokenizer.init_kwargs.pop("auto_map", None)
    # For a folder without a tokenizer, transformers makes an empty one of the model's class.
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
            f"sentence_bert_config.json sets do_lower_case, which laconic applies only to fast tokenizers; got a "
            f"{type(tokenizer).__name__}; save its fast tokenizer in the folder."
        )
    backend = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    if normalizer is None:
        backend.normalizer = Lowercase()
    elif not _has_lowercase(normalizer):
        backend.normalizer = Sequence([Lowercase(), normalizer])
    return tokenizer


def _has_lowercase(normalizer: Normalizer) -> bool:
    state = json.loads(normalizer.__getstate__())
    parts = (state, *state.get("normalizers", ()))
    return any(part.get("type") == "Lowercase" or part.get("lowercase") is True for part in parts)
