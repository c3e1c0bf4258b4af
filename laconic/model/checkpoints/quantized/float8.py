"""Weights in 8-bit floats with a scale for each block, as DeepSeek-V3 and Qwen3-FP8 are stored.

W[i, j] = W8[i, j] · S[i // b, j // c], with blocks of b × c, the last of each row and column cut off where the matrix
ends (DeepSeek-V3 technical report, arXiv:2412.19437, section 3.3).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import shown
from laconic.model.checkpoints.quantized.reader import Reader, StoredTensors, UnreadableError

SCALE = "weight_scale_inv"
USUAL_BLOCK = [128, 128]
"""Default of transformers, for configurations without a block size."""
_OF_ACTIVATIONS = ("activation_scale", "input_scale")


def _check(said: Mapping[str, Any]) -> None:
    block = said.get("weight_block_size", USUAL_BLOCK)
    is_pair = isinstance(block, list) and len(block) == 2
    if block is not None and not (is_pair and all(type(size) is int and size > 0 for size in block)):
        raise UnreadableError(f"its weight_block_size is {shown(block)}, and known are two whole numbers above 0")


def _dequantize(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    block = said.get("weight_block_size", USUAL_BLOCK)
    found = {}
    for name, tensor in held.tensors.items():
        module, _, last = name.rpartition(".")
        if last == SCALE or last in _OF_ACTIVATIONS:
            continue
        if tensor.dtype.itemsize > 1:
            found[name] = tensor
            continue
        scales = held.tensors.get(f"{name}_scale_inv")
        if tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) or scales is None:
            has = "has scales" if scales is not None else f"is without {module}.{SCALE}"
            raise UnreadableError(f"'{name}' is of the type {tensor.dtype} and {has}")
        found[name] = scaled(tensor, scales, block)
    return found


def scaled(codes: Tensor, scales: Tensor, block: list[int] | None) -> Tensor:
    """The numbers of a matrix, or of several of one shape, in float32.

    Args:
        codes: of shape (…, out, in).
        scales: one for all, or (…, ⌈out / block[0]⌉, ⌈in / block[1]⌉).
        block: rows and columns of a block; None where there is one scale for all.

    Raises:
        UnreadableError: there are other scales.
    """
    factors = (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.float()
    if scales.numel() == 1:
        return codes.float() * factors
    if block is None:
        # A vector of them might be of rows or of columns.
        raise UnreadableError(f"there is no weight_block_size, and scales of the shape {tuple(scales.shape)}")
    rows, columns = codes.shape[-2:]
    needed = (-(-rows // block[0]), -(-columns // block[1]))
    if tuple(scales.shape) != (*codes.shape[:-2], *needed):
        raise UnreadableError(f"a matrix of {rows} × {columns} has scales of the shape {tuple(scales.shape)}")
    factors = factors.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]
    return codes.float() * factors


FLOAT8 = Reader(dequantize=_dequantize, check=_check)
