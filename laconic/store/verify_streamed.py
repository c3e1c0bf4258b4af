"""Verify the folder of a streamed model: every tensor is read again in chunks and compared, and a short row is run."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from laconic.calibrate.passes import random_batch
from laconic.formats import PackedCodes
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.model.stock import copy_attention_type, differences, modules_by_path
from laconic.progress import Track
from laconic.store.streamed_parts import part_paths, part_state, read_chunks, readable, stored_dtypes
from laconic.store.verify import LENGTH, compare_outputs, mismatch_error, outputs_of


@torch.no_grad()
def verify_streamed(lm: LanguageModel, folder: Path, track: Track) -> None:
    """Compare the saved model with the one in memory: modules, every tensor bit for bit, and outputs for a short row.

    Args:
        lm: the streamed model that was saved.
        folder: the folder that was written.
        track: reports progress.

    Raises:
        UserError: the folder cannot be loaded, or the loaded model differs.
    """
    tokenizers = lm.tokenizer, lm.target_tokenizer
    loaded = replace(load_streamed(str(folder), tokenizers=tokenizers), label_order=lm.label_order)
    copy_attention_type(lm.model, loaded.model)
    for difference in differences(modules_by_path(lm.model), modules_by_path(loaded.model)):
        raise mismatch_error(str(difference))
    paths = part_paths(lm)
    for path in track([*paths, ""], "Comparing what was written"):
        with readable(lm, path):
            state = part_state(lm, path, paths)
            expected = _digests(lm, state, stored_dtypes(lm, state))
        with readable(loaded, path):
            found = _digests(loaded, part_state(loaded, path, paths))
        for name, digest in expected.items():
            if found.get(name) != digest:
                raise mismatch_error(f"'{name}' would have different values")
    batch = random_batch(lm, 1, LENGTH)
    with ExitStack() as decoders, lm.loaned_on_call(), loaded.loaned_on_call():
        for module in (*lm.model.modules(), *loaded.model.modules()):
            if isinstance(module, PackedCodes):
                # A part has its codes for one call.
                decoders.enter_context(module.kernels.pause())
        compare_outputs(outputs_of(lm, batch), outputs_of(loaded, batch))


def _digests(
    lm: LanguageModel, state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, bytes]:
    """Hashes of the values, shapes and dtypes of tensors.

    Args:
        lm: the model.
        state: the tensors by name.
        dtypes: the dtypes that they were saved in since; None if they were not.

    Returns:
        A hash of each tensor, by name; equal for equal tensors.
    """
    digests = {}
    for name, tensor in state.items():
        digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        for chunk in read_chunks(lm, tensor):
            rounded = chunk if dtypes is None else chunk.to(dtypes[name]).to(chunk.dtype)
            # Adding zero makes zeros of minus zeros, which are equal and have other bits.
            digest.update((rounded + 0).flatten().view(torch.uint8).numpy().data)
        digests[name] = digest.digest()
    return digests
