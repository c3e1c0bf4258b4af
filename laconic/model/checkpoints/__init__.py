"""Checkpoints: all kinds of models that a user can name. `find_checkpoint` finds the kind of one of them.

Most are a `Stored` checkpoint: a folder saved by `save_pretrained`, or a repository of the hub with the same files.
"""

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import CheckpointNotice, UserError
from laconic.imports import QUANT_METHOD
from laconic.model.checkpoints.adapter import ADAPTER_CONFIG, Adapter, keep_embedding_config, read_base_name
from laconic.model.checkpoints.checkpoint import (
    TARGET_TOKENIZER,
    Checkpoint,
    check_tokenizer,
    load_checked,
    no_parts_error,
)
from laconic.model.checkpoints.configuration import CONFIG, read_config, warn_about_code
from laconic.model.checkpoints.fit import check_shapes
from laconic.model.checkpoints.gguf import SUFFIX, Gguf, is_gguf
from laconic.model.checkpoints.location import Location, find_location, is_archive, is_lfs_pointer
from laconic.model.checkpoints.quantized import check_quantization, check_quantized_tensors, load_dequantized
from laconic.model.checkpoints.sentences import EmbeddingConfig, read_embedding_config
from laconic.model.checkpoints.weights import MissingWeightsError, Weights, check_weight_files, find_weights
from laconic.model.file_sizes import FileSizes, matrix_bytes
from laconic.model.task import find_auto_class, text_encoder_class_name

__all__ = ["TARGET_TOKENIZER", "Checkpoint", "Stored", "find_checkpoint"]

EXPORTED = (
    "model.onnx", "decoder_model.onnx", "openvino_model.xml", "openvino_decoder_model.xml",
)  # fmt: skip
"""Files of models for other runtimes, as `laconic export` writes them."""
NO_ADAPTER = "no-adapter-is-meant"
"""A subfolder that no model has: transformers looks for an adapter there, and so applies none."""


@dataclass(frozen=True, kw_only=True)
class Stored(Checkpoint):
    """A folder saved by `save_pretrained`, or a hub repository with the same files."""

    @property
    def has_weights(self) -> bool:
        return self.location.folder is None or find_weights(self.location) is not None

    def config(self) -> PreTrainedConfig:
        config = read_config(self.location)
        if self._quantization is not None:
            check_quantization(self._quantization, self.source)
            for part in (config, config.get_text_config()):
                vars(part).pop("quantization_config", None)
        if self.embedding_config is not None and self.embedding_config.embeds:
            # sentence-transformers loads the plain encoder, whichever class was saved.
            config.architectures = [text_encoder_class_name(config, self.source)]
        return config

    def check(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> None:
        try:
            weights = check_weight_files(replace(self.location, downloads=False), config)
            if self._quantization is None:
                shapes = {name: header.shape for name, header in weights.headers().items()}
                check_shapes(shapes, config, self.source, external_names, weights.integer_names)
            else:
                check_quantized_tensors(config, weights, self._quantization, self.source, external_names)
        except MissingWeightsError:
            # Weights that are not downloaded yet are checked when they are loaded.
            if self.location.folder is not None or not self.location.downloads:
                raise
        if self.location.folder is not None and self.embedding_config is not None:
            # These modules are small.
            self.embedding_config.load()
        check_tokenizer(self.location)

    def load(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> PreTrainedModel:
        return self._load(config, external_names)

    def load_packed(self, config: PreTrainedConfig) -> PreTrainedModel:
        return self._load(config, packed=True)

    def _load(
        self, config: PreTrainedConfig, external_names: Collection[str] = (), *, packed: bool = False
    ) -> PreTrainedModel:
        self._warn()
        weights = check_weight_files(self.location, config)
        if self._quantization is not None:
            model = load_dequantized(config, weights, self._quantization, self.source, external_names, packed=packed)
        else:
            # A pooler that is not in the file is initialized at random, equally at every loading.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = load_checked(
                    find_auto_class(config, config.architectures or ()),
                    config,
                    self.source,
                    # Given the name of a repository, transformers would ask the hub to convert its pickles.
                    pretrained_model_name_or_path=str(weights.folder),
                    external_names=external_names,
                    integer_names=weights.integer_names,
                    trust_remote_code=False,
                    use_safetensors=weights.are_safe,
                    weights_only=True,
                    adapter_kwargs={"subfolder": NO_ADAPTER},
                )
        model.config.name_or_path = self.location.name
        return model

    def file_sizes(self, model: PreTrainedModel) -> FileSizes | None:
        if self._quantization is None:
            return None
        weights = check_weight_files(self.location, model.config)
        tensors = {
            name: prod(shape) * (0 if isinstance(dtype, str) else dtype.itemsize)
            for name, (shape, dtype) in weights.headers().items()
        }
        return FileSizes(sum(file.stat().st_size for file in weights.files), matrix_bytes(tensors))

    def _warn(self) -> None:
        warn_about_code(self.location.json(CONFIG) or {}, self.source)
        if self.location.file(ADAPTER_CONFIG) is not None:
            warnings.warn(
                f"'{self.source}' holds a model and an adapter for it: the model is read without the adapter. "
                "To merge them, put the adapter into a folder of its own and give that.",
                CheckpointNotice,
                stacklevel=3,
            )

    def weights_in_parts(self, config: PreTrainedConfig) -> Weights:
        self._warn()
        weights = check_weight_files(self.location, config)
        if self._quantization is not None:
            raise no_parts_error(self.source, f"it is quantized by '{self._quantization.get('quant_method')}'")
        if not weights.are_safe:
            raise no_parts_error(self.source, f"its weights are a pickle ({weights.files[0].name})")
        return weights

    @cached_property
    def _quantization(self) -> dict[str, Any] | None:
        """The `quantization_config` of another library; None for plain weights and models that laconic compressed."""
        raw = self.location.json(CONFIG) or {}
        text = raw.get("text_config")
        config = raw.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
        return config if isinstance(config, dict) and config and config.get("quant_method") != QUANT_METHOD else None

    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        if isinstance(config.dtype, torch.dtype):
            return config.dtype
        return check_weight_files(self.location, config).dtype()


def find_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Find the model that `source` names, and which kind of checkpoint it is.

    Args:
        source: a folder, the name of a hub repository, or a GGUF file.
        revision: a branch, tag or commit of the repository.

    Raises:
        UserError: there is no model.
    """
    location = find_location(source, revision)
    if isinstance(location, Path):
        return _read_file(location, source)
    embedding = read_embedding_config(location)
    location = location if embedding is None else location.inside(embedding.subfolder)
    stored = Stored(location=location, embedding_config=embedding)
    has_config = location.file(CONFIG) is not None
    if has_config and (location.folder is None or stored.has_weights):
        return stored
    if location.file(ADAPTER_CONFIG) is not None:
        return _read_adapter(location, embedding)
    if location.folder is None:
        return stored
    files = sorted(location.folder.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        return Gguf(location=location, path=files[0])
    if files:
        raise UserError(
            f"The folder '{source}' holds {len(files)} GGUF files; give one of them: {', '.join(map(str, files[:5]))}."
        )
    # An exported model that writes text has its configuration.
    if not has_config or _exported_file(location) is not None:
        raise UserError(_explain_folder(location, source))
    return stored


def _read_adapter(location: Location, embedding: EmbeddingConfig | None) -> Checkpoint:
    name, revision = read_base_name(location)
    base = find_location(name, revision)
    is_adapter = isinstance(base, Location) and base.file(CONFIG) is None and base.file(ADAPTER_CONFIG) is not None
    if is_adapter or (location.folder is not None and os.path.realpath(name) == os.path.realpath(location.folder)):
        raise UserError(
            f"The adapter '{location.source}' names '{name}' as its model, which is an adapter itself; "
            "merge that first, and name the folder under base_model_name_or_path in adapter_config.json."
        )
    checkpoint = find_checkpoint(name, revision)
    embedding = keep_embedding_config(location, checkpoint.embedding_config if embedding is None else embedding)
    # The adapter decides which class the base model is loaded as.
    return Adapter(location=location, embedding_config=embedding, base=replace(checkpoint, embedding_config=None))


def _read_file(path: Path, source: str) -> Checkpoint:
    try:
        if is_gguf(path):
            return Gguf(location=Location(source, path.parent), path=path)
    except OSError as error:
        raise UserError(f"The file '{source}' cannot be read: {error.strerror}; give another.") from error
    raise UserError(_explain_file(path, source))


def _explain_file(path: Path, source: str) -> str:
    """The reason why the file at `path` is no model."""
    remedy = "give the folder that it lies in, with its config.json"
    if is_lfs_pointer(path):
        return f"'{source}' is a pointer of Git LFS, not the file itself; fetch the file by `git lfs pull`."
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        return f"'{source}' contains only weights; {remedy}."
    if path.suffix == SUFFIX:
        return f"'{source}' is not a GGUF file, as its first bytes show; fetch it again."
    if is_archive(path):
        return f"'{source}' is an archive; unpack it, and give the folder with the config.json."
    return f"'{source}' is a file, and a model is a folder with a config.json or a hub name; {remedy}."


def _exported_file(location: Location) -> str | None:
    """The graph of a model for another runtime; None if the folder has none."""
    return next((name for name in EXPORTED if location.file(name) is not None), None)


def _explain_folder(location: Location, source: str) -> str:
    """The reason why the folder at `location`, which has no config.json, is no model."""
    if location.file("model_index.json") is not None:
        return (
            f"The folder '{source}' holds a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    if (exported := _exported_file(location)) is not None:
        return (
            f"The folder '{source}' holds an exported model ({exported}) for another runtime, which is not read here; "
            "give the folder that it was exported from."
        )
    folders = [] if location.folder is None else sorted(path.parent for path in location.folder.glob(f"*/{CONFIG}"))
    if folders:
        place = "there is one in" if len(folders) == 1 else f"{len(folders)} folders in it have one, such as"
        return f"The folder '{source}' has no config.json; {place} '{folders[-1]}': give that."
    return f"The folder '{source}' has no config.json; give a folder saved by save_pretrained."
