"""Write the folder of a streamed model: one file for each part, and a last file for everything outside the parts.

The configuration, the structure and the names of tensors are those that `save` writes for a model in memory. One part
with formats is in memory at a time; all others are copied in chunks. At the end the folder is read again and compared.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from laconic.model import LanguageModel
from laconic.model.loans_parts import Structure
from laconic.progress import Track, silent
from laconic.store.atomic import new_folder
from laconic.store.expert_layers import placeholders, store_stacks_as_they_are
from laconic.store.folder import ExtraFiles, to_dtype, write_other_files
from laconic.store.part_structures import PartStructures
from laconic.store.pretrained import attach
from laconic.store.streamed_parts import part_paths, part_state, read_chunks, readable, stored_dtypes
from laconic.store.tensor_file import ChunkedTensor, write_tensors
from laconic.store.verify_streamed import verify_streamed


def save_streamed(
    lm: LanguageModel, folder: Path, extra_files: ExtraFiles | None = None, *, track: Track = silent
) -> None:
    """Write a streamed model to a new folder that `from_pretrained` reads.

    Args:
        lm: the model.
        folder: the path of the new folder; it must not exist.
        extra_files: additional files; None for only a model card.
        track: reports progress.

    Raises:
        UserError: as for `save`.
    """
    with new_folder(folder) as unfinished:
        stored = to_dtype(lm.model, lm.dtype)
        attach(stored, _write_shards(lm, stored, unfinished, track))
        _write_configuration(stored, unfinished)
        verify_streamed(lm, unfinished, track)
        write_other_files(lm, stored, unfinished, folder, extra_files or ExtraFiles())


def _write_configuration(stored: PreTrainedModel, folder: Path) -> None:
    """Write what `save_pretrained` writes beside the weights."""
    stored.config.dtype = str(stored.dtype).removeprefix("torch.")
    stored.config.architectures = [type(stored).__name__]
    stored.config.save_pretrained(folder)
    if stored.can_generate() and stored.generation_config is not None:
        stored.generation_config.save_pretrained(folder)


def _write_shards(lm: LanguageModel, stored: PreTrainedModel, folder: Path, track: Track) -> Structure:
    """Write the files of all parts and their index, and return the entries of the formats."""
    store_stacks_as_they_are(stored)
    written = _unwritten_names(lm.model)
    structures, entries = PartStructures(), dict[str, Mapping[str, Any]]()
    files: dict[Path, list[str]] = {}
    total = 0
    paths = part_paths(lm)
    for number, path in enumerate(track([*paths, ""], "Writing the model")):
        with readable(lm, path, stored):
            # Some entries of a format depend on its weights, which are on loan only in its own part.
            entries = {**structures.describe(lm.model, path), **entries}
            state = {name: tensor for name, tensor in part_state(lm, path, paths).items() if name not in written}
            written |= state.keys()
            tensors = _chunked_tensors(lm, stored, state) | ({} if path else _empty_tensors(stored))
            if tensors:
                file = folder / f"part-{number}"
                write_tensors(tensors, file)
                files[file] = list(tensors)
                total += sum(tensor.nbytes for tensor in tensors.values())
            # Otherwise this part would be in memory until the next one has been read.
            del state, tensors
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(files.items(), start=1):
        shard = file.rename(folder / f"model-{number:05d}-of-{len(files):05d}.safetensors")
        weight_map |= dict.fromkeys(names, shard.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return entries


def _chunked_tensors(
    lm: LanguageModel, stored: PreTrainedModel, state: Mapping[str, Tensor]
) -> dict[str, ChunkedTensor]:
    """The tensors of a part under the names and in the form in which transformers saves them."""
    dtypes = stored_dtypes(lm, state)
    # A tensor that is made of others has the dtype that these have in the file, which may not be that in memory.
    rounded = {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in state.items()}
    saved = revert_weight_conversion(stored, rounded)
    return {
        name: ChunkedTensor(tuple(tensor.shape), saved[name].dtype, partial(read_chunks, lm, tensor))
        for name, tensor in revert_weight_conversion(stored, dict(state)).items()
    }


def _empty_tensors(stored: PreTrainedModel) -> dict[str, ChunkedTensor]:
    """The tensors without elements by which transformers alone notices that layers were replaced."""
    return {
        name: ChunkedTensor(tuple(tensor.shape), tensor.dtype, partial(iter, ()))
        for name, tensor in revert_weight_conversion(stored, placeholders(stored)).items()
    }


def _unwritten_names(model: PreTrainedModel) -> set[str]:
    """The names of tensors that are not saved: tied ones, saved under another name, and those that a class omits."""
    buffers = model.named_buffers(remove_duplicate=False)
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(buffers)}
    tied = {name for name, source in model.all_tied_weights_keys.items() if tensors.get(name) is tensors.get(source)}
    return tied | set(model._keys_to_ignore_on_save or ())
