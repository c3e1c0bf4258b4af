"""Checkpoints: everything that can be given as a model, one file per kind; `find_checkpoint` decides which it is."""

import os
from dataclasses import replace
from pathlib import Path

from laconic.errors import UserError
from laconic.model.checkpoints.adapter import ADAPTER_CONFIG, Adapter, keep_embedding_config, read_base_name
from laconic.model.checkpoints.checkpoint import TARGET_TOKENIZER, Checkpoint
from laconic.model.checkpoints.configuration import CONFIG
from laconic.model.checkpoints.gguf import SUFFIX, Gguf, is_gguf
from laconic.model.checkpoints.location import Location, find_location, is_archive, is_lfs_pointer
from laconic.model.checkpoints.sentences import EmbeddingConfig, read_embedding_config
from laconic.model.checkpoints.stored import Stored

__all__ = ["TARGET_TOKENIZER", "Checkpoint", "find_checkpoint"]

EXPORTED = ("model.onnx", "openvino_model.xml")
"""Files of models for other runtimes, as `laconic export` writes them."""


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
    if not has_config:
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
    """Why the file at `path` is no model."""
    remedy = "give the folder that it lies in, with its config.json"
    if is_lfs_pointer(path):
        return f"Git LFS has left a note in the place of '{source}'; fetch the file itself, by `git lfs pull`."
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        return f"'{source}' is a file of weights alone; {remedy}."
    if path.suffix == SUFFIX:
        return f"'{source}' is no GGUF file: it does not begin as one; fetch it again."
    if is_archive(path):
        return f"'{source}' is an archive; unpack it, and give the folder with the config.json."
    return f"'{source}' is a file, and a model is a folder with a config.json or a hub name; {remedy}."


def _explain_folder(location: Location, source: str) -> str:
    """Why the folder at `location`, which has no config.json, is no model."""
    if location.file("model_index.json") is not None:
        return (
            f"The folder '{source}' holds a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    exported = next((name for name in EXPORTED if location.file(name) is not None), None)
    if exported is not None:
        return (
            f"The folder '{source}' holds an exported model ({exported}) for another runtime, which is not read here; "
            "give the folder that it was exported from."
        )
    inside = [] if location.folder is None else sorted(path.parent for path in location.folder.glob(f"*/{CONFIG}"))
    if inside:
        one = "it is in" if len(inside) == 1 else f"{len(inside)} folders in it have one, as"
        return f"The folder '{source}' has no config.json; {one} '{inside[-1]}': give that."
    return f"The folder '{source}' has no config.json; give a folder saved by save_pretrained."
