"""Write the folder of a streamed model: one file for each part, read again and compared as soon as it is written.

The configuration, the structure and the names of tensors are those that `save` writes for a model in memory. A part is
a block, a word embedding or a head; what else the model has is in a last file. One part is in memory at a time.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from laconic.calibrate.passes import random_batch
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.model.loans_origins import CHUNK
from laconic.model.loans_parts import Structure, stored_state
from laconic.model.stock import copy_attention_type, differences, modules_by_path
from laconic.progress import Track, silent
from laconic.store.atomic import new_folder
from laconic.store.expert_layers import placeholders, store_stacks_as_they_are
from laconic.store.folder import ExtraFiles, cast_tensor, exact_names, to_dtype, write_other_files
from laconic.store.part_structures import PartStructures
from laconic.store.pretrained import attach
from laconic.store.verify import LENGTH, compare_outputs, mismatch_error, outputs_of


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
    with new_folder(folder) as partial:
        stored = to_dtype(lm.model, lm.dtype)
        attach(stored, _write_shards(lm, stored, partial, track))
        _write_configuration(stored, partial)
        _verify(lm, partial, track)
        write_other_files(lm, stored, partial, folder, extra_files or ExtraFiles())


def _write_configuration(stored: PreTrainedModel, folder: Path) -> None:
    """Write what `save_pretrained` writes beside the weights."""
    stored.config.dtype = str(stored.dtype).removeprefix("torch.")
    stored.config.architectures = [type(stored).__name__]
    stored.config.save_pretrained(folder)
    if stored.can_generate() and stored.generation_config is not None:
        stored.generation_config.save_pretrained(folder)


def _write_shards(lm: LanguageModel, stored: PreTrainedModel, folder: Path, track: Track) -> Structure:
    """Write the files of all parts and their index, and return the entries of the formats."""
    assert lm.loans is not None
    store_stacks_as_they_are(stored)
    exact = exact_names(stored, lm.dtype)
    written = _unwritten_names(lm.model)
    entries: Structure = {}
    files: dict[Path, list[str]] = {}
    total = 0
    paths = lm.loans.paths_in(lm.model)
    for number, path in enumerate(track([*paths, ""], "Writing the model")):
        with lm.on_loan(*filter(None, [path])):
            state = stored_state(lm.model, path) if path else _state_outside(lm.model, paths)
            entries = {**PartStructures().describe(lm.model, path), **entries}
            tensors = {
                name: cast_tensor(tensor, lm.dtype, exact.search(name) is not None)
                for name, tensor in state.items()
                if name not in written
            }
            written |= tensors.keys()
            tensors |= {} if path else placeholders(stored)
            tensors = revert_weight_conversion(stored, tensors)
            if tensors:
                file = folder / f"part-{number}"
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
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


def _unwritten_names(model: PreTrainedModel) -> set[str]:
    """The names of tensors that are not saved: tied ones, saved under another name, and those that a class omits."""
    buffers = model.named_buffers(remove_duplicate=False)
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(buffers)}
    tied = {name for name, source in model.all_tied_weights_keys.items() if tensors.get(name) is tensors.get(source)}
    return tied | set(model._keys_to_ignore_on_save or ())


def _state_outside(model: PreTrainedModel, paths: Collection[str]) -> dict[str, Tensor]:
    """The tensors that are in no part, as a saved model has them."""

    def collect(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        if prefix in paths:
            return
        if not any(path.startswith(f"{prefix}." if prefix else "") for path in paths):
            yield from module.state_dict(prefix=f"{prefix}.", keep_vars=True).items()
            return
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor
        for name, child in module.named_children():
            yield from collect(child, f"{prefix}.{name}" if prefix else name)

    return {name: tensor.detach() for name, tensor in collect(model, "")}


@torch.no_grad()
def _verify(lm: LanguageModel, folder: Path, track: Track) -> None:
    """Compare the saved model with the one in memory: modules, every tensor bit for bit, and outputs for a short row.

    Raises:
        UserError: they differ.
    """
    loaded = replace(load_streamed(str(folder)), label_order=lm.label_order)
    copy_attention_type(lm.model, loaded.model)
    for difference in differences(modules_by_path(lm.model), modules_by_path(loaded.model)):
        raise mismatch_error(str(difference))
    assert lm.loans is not None
    paths = lm.loans.paths_in(lm.model)
    for path in track(paths, "Comparing what was written"):
        # One after the other, because an embedding may be larger than everything else that is in memory.
        with lm.on_loan(path):
            expected = _digests(stored_state(lm.model, path), lm.dtype)
        with loaded.on_loan(path):
            _compare(expected, _digests(stored_state(loaded.model, path)))
    outside = _digests(_state_outside(lm.model, paths), lm.dtype)
    _compare(outside, _digests(_state_outside(loaded.model, paths)))
    batch = random_batch(lm, 1, LENGTH)
    with lm.loaned_on_call(), loaded.loaned_on_call():
        compare_outputs(outputs_of(lm, batch), outputs_of(loaded, batch))


def _compare(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> None:
    for name, digest in expected.items():
        if found.get(name) != digest:
            raise mismatch_error(f"'{name}' would have different values")


def _digests(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, bytes]:
    """Hashes of the values, shapes and dtypes of tensors.

    Args:
        state: the tensors by name.
        dtype: the dtype that they were stored in since, and read from; None if they were not.

    Returns:
        A hash of each tensor, by name; equal for equal tensors.
    """
    digests = {}
    for name, tensor in state.items():
        digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        for chunk in tensor.detach().flatten().split(CHUNK):
            rounded = chunk if dtype is None else _round(chunk, dtype)
            # Adding zero makes zeros of minus zeros, which are equal and have other bits.
            digest.update((rounded + 0).cpu().view(torch.uint8).numpy().data)
        digests[name] = digest.digest()
    return digests


def _round(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor after it was stored in `dtype`."""
    return tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor
