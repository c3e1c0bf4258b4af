"""A GGUF file, the format of llama.cpp; transformers dequantizes its blocks of codes.

transformers reads only part of the metadata. Other metadata that changes the outputs is checked
(`laconic.model.checkpoints.gguf_checks`): the file is refused, or the configuration is completed.
"""

import struct
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from laconic.errors import CheckpointNotice, UserError, reason_of
from laconic.model.checkpoints.checkpoint import Checkpoint, Tokenizers, load_checked, require_package
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.gguf_blocks import file_names, keep_blocks
from laconic.model.checkpoints.gguf_checks import FACTORS, check_count, check_metadata, check_tensors, set_rope_scaling
from laconic.model.checkpoints.gguf_t5 import complete_t5
from laconic.model.file_sizes import FileSizes
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import as_classes, find_auto_class

SUFFIX = ".gguf"
MAGIC = b"GGUF"
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of ggml for plain floating-point numbers, by name."""


@dataclass(frozen=True, kw_only=True)
class Gguf(Checkpoint):
    """A model in one GGUF file.

    Args:
        path: the file; `location` is its folder.
    """

    path: Path

    def config(self) -> PreTrainedConfig:
        subject = f"The GGUF file '{self.source}'"
        require_package("transformers", subject, min_version="5.23")
        require_package("gguf", subject, extra="gguf", min_version="0.17")
        require_package("accelerate", subject, extra="gguf", min_version="1.1")
        metadata = self._metadata
        if (parts := metadata.get("split.count", 1)) > 1:
            raise UserError(
                f"{subject} is one of {parts} parts; merge them with `llama-gguf-split --merge` and give the merged "
                "file."
            )
        if (kind := metadata.get("general.type", "model")) != "model":
            raise UserError(f"{subject} has the type '{kind}' and is not a model; give the GGUF file of a model.")
        architecture = metadata["general.architecture"]
        try:
            config = AutoConfig.from_pretrained(
                str(self.path.parent), gguf_file=self.path.name, trust_remote_code=False
            )
        except (OSError, *MODEL_ERRORS) as error:
            raise UserError(
                f"{subject} of the architecture '{architecture}' cannot be read by transformers: "
                f"{reason_of(error)}; use the folder that it was made from."
            ) from error
        _name_class(config)
        complete_t5(config, metadata, [tensor.name for tensor in self._reader.tensors])
        for tensor in self._reader.tensors:
            if tensor.name == FACTORS:
                set_rope_scaling(config, torch.tensor(tensor.data), self.source)
        check_metadata(metadata, [tensor.name for tensor in self._reader.tensors], config, self.source)
        return config

    def check(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> None:
        # When the configuration was read, the reader checked that the file contains its tensors.
        architecture = self._metadata["general.architecture"]
        check_tensors(build_outline(config, self.source), architecture, self._shapes, self.source, external_names)

    def load(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> PreTrainedModel:
        if self._plain_types() is None:
            warnings.warn(
                f"The GGUF file '{self.source}' holds codes, which are turned into numbers and kept as float32.",
                CheckpointNotice,
                stacklevel=2,
            )
        return self._load(config, external_names)

    def load_packed(self, config: PreTrainedConfig) -> PreTrainedModel:
        model = self._load(config)
        keep_blocks(model, {tensor.name: tensor for tensor in self._reader.tensors}, self._names(model))
        return model

    def file_sizes(self, model: PreTrainedModel) -> FileSizes | None:
        if self._plain_types() is not None:
            return None
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in self._reader.tensors}
        matrices = {path: sizes.get(f"{name}.weight", 0) for path, name in self._names(model).items()}
        return FileSizes(self.path.stat().st_size, {path: size for path, size in matrices.items() if size})

    def _names(self, model: PreTrainedModel) -> dict[str, str]:
        """The name in the file of each module with a weight, by its path."""
        blocks = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
        return file_names(model, self._metadata["general.architecture"], blocks)

    def _load(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> PreTrainedModel:
        from transformers import GgufConfig  # noqa: PLC0415 (`config` has checked the version of transformers)

        model = load_checked(
            find_auto_class(config, config.architectures or ()),
            config,
            self.source,
            pretrained_model_name_or_path=str(self.path.parent),
            external_names=external_names,
            remedy="use the folder that it was made from",
            gguf_file=self.path.name,
            # Otherwise the codes are kept in modules that are not linears and cannot be saved.
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        check_count(model, self._shapes, self.source)
        model.config.name_or_path = str(self.path)
        return model

    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        plain = self._plain_types()
        # No shorter dtype holds every product of an 8-bit code and a 16-bit scale, and norms are always float32.
        return torch.float32 if plain is None else min(plain, key=lambda dtype: dtype.itemsize)

    def tokenizers(self, own: PreTrainedTokenizerBase | None = None) -> Tokenizers:
        if own is not None:
            return own, None
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self.path.parent), gguf_file=self.path.name, trust_remote_code=False
            )
        except (OSError, *MODEL_ERRORS) as error:
            warnings.warn(
                f"The tokenizer in '{self.source}' cannot be read by transformers: {reason_of(error)}; "
                "the model is loaded without a tokenizer.",
                CheckpointNotice,
                stacklevel=2,
            )
            return None, None
        return tokenizer, None

    @cached_property
    def _reader(self) -> Any:
        """The reader of llama.cpp for the file. For a large vocabulary, making it takes seconds."""
        from gguf import GGUFReader  # noqa: PLC0415 (`config` has checked that it is installed)

        try:
            return GGUFReader(self.path)
        except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError, struct.error) as error:
            raise UserError(
                f"The GGUF file '{self.source}' is damaged, cut off or of another version: {reason_of(error)}; "
                "fetch it again."
            ) from error

    @property
    def _metadata(self) -> dict[str, Any]:
        """The metadata of the file, except for its vocabulary."""
        metadata = {
            name: field.contents()
            for name, field in self._reader.fields.items()
            if not name.startswith(("GGUF.", "tokenizer."))
        }
        if not isinstance(metadata.get("general.architecture"), str):
            raise UserError(f"The GGUF file '{self.source}' does not say general.architecture; use a complete file.")
        return metadata

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape (out, in) of every tensor, by name."""
        return {tensor.name: tuple(int(side) for side in tensor.shape[::-1]) for tensor in self._reader.tensors}

    def _plain_types(self) -> set[torch.dtype] | None:
        """The dtypes of the tensors; None if one holds codes."""
        names = {tensor.tensor_type.name for tensor in self._reader.tensors}
        return {_PLAIN[name] for name in names} if names <= set(_PLAIN) else None


def is_gguf(path: Path) -> bool:
    """Whether the file at `path` begins with the magic number of GGUF."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _name_class(config: PreTrainedConfig) -> None:
    """Set `architectures` to the class that generates text, if transformers does not set it."""
    if config.architectures:
        return
    for mapping in (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            model_class: Any = mapping[type(config)]
            config.architectures = [as_classes(model_class)[0].__name__]
            return
