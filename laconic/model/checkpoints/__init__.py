"""What can be given as a model: a folder or a repository with its weights, whichever library wrote them.

One file a kind; `checkpoint_at` says which kind a name is.
"""

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
    """The checkpoint that `source` names.

    Args:
        source: a folder, the name of a repository of the hub, or a GGUF file.
        revision: of the repository: a branch, tag or commit.

    Raises:
        UserError: there is nothing, or something else than a model.
    """
    place = find_location(source, revision)
    if isinstance(place, Path):
        return _in_a_file(place, source)
    found = read_embedding_config(place)
    place = place if found is None else place.inside(found.subfolder)
    stored = Stored(place=place, declared=found)
    if place.folder is None:
        is_adapter = place.file(CONFIG) is None and place.file(ADAPTER_CONFIG) is not None
        return _adapter(place, found) if is_adapter else stored
    if place.file(CONFIG) is not None and stored.has_weights:
        return stored
    if place.file(ADAPTER_CONFIG) is not None:
        return _adapter(place, found)
    files = sorted(place.folder.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        return Gguf(place=place, path=files[0])
    if files:
        raise UserError(
            f"The folder '{source}' holds {len(files)} GGUF files; give one of them: {', '.join(map(str, files[:5]))}."
        )
    if place.file(CONFIG) is None:
        raise UserError(_no_model_folder(place, source))
    return stored


def _adapter(place: Location, found: EmbeddingConfig | None) -> Checkpoint:
    name, revision = read_base_name(place)
    base_place = find_location(name, revision)
    alone = (
        isinstance(base_place, Location)
        and base_place.file(CONFIG) is None
        and base_place.file(ADAPTER_CONFIG) is not None
    )
    if alone or (place.folder is not None and os.path.realpath(name) == os.path.realpath(place.folder)):
        raise UserError(
            f"The adapter '{place.source}' names '{name}' as its model, which is an adapter itself; "
            "merge that first, and name the folder under base_model_name_or_path in adapter_config.json."
        )
    base = find_checkpoint(name, revision)
    behind = keep_embedding_config(place, base.declared if found is None else found)
    # Which class the model is loaded as, the adapter says.
    return Adapter(place=place, declared=behind, base=replace(base, declared=None))


def _in_a_file(path: Path, source: str) -> Checkpoint:
    try:
        if is_gguf(path):
            return Gguf(place=Location(source, path.parent), path=path)
    except OSError as error:
        raise UserError(f"The file '{source}' cannot be read: {error.strerror}; give another.") from error
    raise UserError(_no_model_file(path, source))


def _no_model_file(path: Path, source: str) -> str:
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


def _no_model_folder(place: Location, source: str) -> str:
    """Why the folder at `place`, which has no config.json, is no model."""
    if place.file("model_index.json") is not None:
        return (
            f"The folder '{source}' holds a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    exported = next((name for name in EXPORTED if place.file(name) is not None), None)
    if exported is not None:
        return (
            f"The folder '{source}' holds an exported model ({exported}) for another runtime, which is not read here; "
            "give the folder that it was exported from."
        )
    inside = [] if place.folder is None else sorted(path.parent for path in place.folder.glob(f"*/{CONFIG}"))
    if inside:
        one = "it is in" if len(inside) == 1 else f"{len(inside)} folders in it have one, as"
        return f"The folder '{source}' has no config.json; {one} '{inside[-1]}': give that."
    return f"The folder '{source}' has no config.json; give a folder saved by save_pretrained."
