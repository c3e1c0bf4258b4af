"""Verify the folder of a streamed model: every tensor is read again in chunks and compared, and a short row is run."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from laconic.calibrate.passes import random_batch
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.model.stock import copy_attention_type, differences, modules_by_path
from laconic.progress import Track
from laconic.store.streamed_parts import part_paths, part_state, read_chunks, readable, stored_dtypes
from laconic.store.verify import LENGTH, compare_outputs, mismatch_error, outputs_of


@torch.no_grad()
def verify_streamed(lm: LanguageModel, folder: Path, track: Track) -> None:
    """Compare the saved model with the one in memory: modules, every tensor, and outputs for a short row.

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
        with readable(lm, path), readable(loaded, path):
            state, found = part_state(lm, path, paths), part_state(loaded, path, paths)
            dtypes = stored_dtypes(lm, state)
            for name, tensor in state.items():
                form = tensor.dtype, tensor.shape
                if name not in found or form != (found[name].dtype, found[name].shape):
                    raise mismatch_error(f"'{name}' would have another shape or dtype")
                rounded = (chunk.to(dtypes[name]).to(chunk.dtype) for chunk in read_chunks(lm, tensor))
                if not _equal(rounded, read_chunks(loaded, found[name])):
                    raise mismatch_error(f"'{name}' would have different values")
            # Otherwise this part would be in memory until the next one has been read.
            del state, found
    batch = random_batch(lm, 1, LENGTH)
    with lm.loaned_on_call(), loaded.loaned_on_call():
        compare_outputs(outputs_of(lm, batch), outputs_of(loaded, batch))


def _equal(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether the chunks of two tensors of the same shape hold the same values; they may end at other places."""
    chunks, left = iter(second), torch.empty(0)
    for chunk in first:
        rest = chunk.flatten()
        while len(rest):
            left = left if len(left) else next(chunks).flatten()
            some = min(len(rest), len(left))
            if not torch.equal(rest[:some], left[:some]):
                return False
            rest, left = rest[some:], left[some:]
    return True
