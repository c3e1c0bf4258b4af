"""What can be given as a model: a folder or a repository with its weights, whichever library wrote them.

One file a kind; `checkpoint_at` says which kind a name is.
"""

from pathlib import Path

from laconic.errors import UserError
from laconic.model.checkpoints.checkpoint import TARGET_TOKENIZER, Checkpoint, check_tokenizer, read_tokenizer
from laconic.model.checkpoints.configuration import CONFIG
from laconic.model.checkpoints.place import Place, located
from laconic.model.checkpoints.stored import Stored

__all__ = ["TARGET_TOKENIZER", "Checkpoint", "check_tokenizer", "checkpoint_at", "read_tokenizer"]


def checkpoint_at(source: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint that `source` names.

    Args:
        source: a folder or the name of a repository of the hub.
        revision: of the repository: a branch, tag or commit.

    Raises:
        UserError: there is nothing, or something else than a model.
    """
    place = located(source, revision)
    if isinstance(place, Path):
        raise UserError(_no_model_file(place, source))
    if place.folder is not None and place.file(CONFIG) is None:
        raise UserError(_no_model_folder(place, source))
    return Stored(place)


def _no_model_file(path: Path, source: str) -> str:
    """Why the file at `path` is no model."""
    remedy = "give the folder that it lies in, with its config.json"
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        return f"'{source}' is a file of weights alone; {remedy}."
    if path.suffix in (".zip", ".tar", ".gz", ".tgz"):
        return f"'{source}' is an archive; unpack it, and give the folder with the config.json."
    return f"'{source}' is a file, and a model is a folder with a config.json or a hub name; {remedy}."


def _no_model_folder(place: Place, source: str) -> str:
    """Why the folder at `place`, which has no config.json, is no model."""
    if place.file("model_index.json") is not None:
        return (
            f"The folder '{source}' holds a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    return f"The folder '{source}' has no config.json; give a folder saved by save_pretrained."
