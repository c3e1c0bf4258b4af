"""The contract of readers of quantized checkpoints, and those of FP8 with block scales and MXFP4.

- FP8 (DeepSeek-V3, Qwen3-FP8): W[i, j] = W8[i, j] · S[i // b, j // c] for blocks of b × c (DeepSeek-V3 technical
  report, arXiv:2412.19437, section 3.3).
- MXFP4 (gpt-oss): floats with 1 sign bit, 2 exponent bits and 1 mantissa bit. A byte contains two of them, the first in
  its low half. Every 32 floats share a scale 2^e, stored as e + 127 (OCP Microscaling Formats 1.0, section 5).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laconic.errors import quote
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix

PlainTensors = dict[str, Tensor | CodedMatrix]
"""The tensors of the plain model by name; matrices may still be codes."""


class UnreadableError(Exception):
    """A checkpoint cannot be dequantized; the message is a clause with the reason."""


@dataclass(frozen=True)
class StoredTensors:
    """The contents of a model's weight files.

    Args:
        tensors: every tensor as stored, by name.
        metadata: the metadata of safetensors files.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dequantizer:
    """Dequantizes the checkpoints of one library.

    Args:
        dequantize: takes the stored tensors and the `quantization_config`. Returns the tensors of the plain model: each
            matrix as `<module>.weight` (out, in), in float32 or as codes, everything else as stored. It is run on the
            meta device first, to check names, dtypes and shapes.
        check: raises UnreadableError for a `quantization_config` that `dequantize` cannot read.
        package: the package that it needs; None for none.
        min_version: its oldest supported version.
        needs_package: whether a `quantization_config` can only be read with the package.
    """

    dequantize: Callable[[StoredTensors, Mapping[str, Any]], "PlainTensors"]
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    package: str | None = None
    min_version: str | None = None
    needs_package: Callable[[Mapping[str, Any]], bool] = lambda _: True


SCALE = "weight_scale_inv"
DEFAULT_BLOCK = [128, 128]
"""The block size of configurations that name none, as in transformers."""
_ACTIVATION_SCALES = ("activation_scale", "input_scale")


def _check_float8(config: Mapping[str, Any]) -> None:
    block = config.get("weight_block_size", DEFAULT_BLOCK)
    is_pair = isinstance(block, list) and len(block) == 2
    if block is not None and not (is_pair and all(type(size) is int and size > 0 for size in block)):
        raise UnreadableError(f"its weight_block_size is {quote(block)}, and known are two whole numbers above 0")


def _float8(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    block = config.get("weight_block_size", DEFAULT_BLOCK)
    plain: PlainTensors = {}
    for name, tensor in stored.tensors.items():
        module, _, last = name.rpartition(".")
        if last == SCALE or last in _ACTIVATION_SCALES:
            continue
        if tensor.dtype.itemsize > 1:
            plain[name] = tensor
            continue
        scales = stored.tensors.get(f"{name}_scale_inv")
        if tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) or scales is None:
            problem = "has scales" if scales is not None else f"is without {module}.{SCALE}"
            raise UnreadableError(f"'{name}' is of the type {tensor.dtype} and {problem}")
        plain[name] = scale_blocks(tensor, scales, block)
    return plain


def scale_blocks(codes: Tensor, scales: Tensor, block: list[int] | None) -> Tensor:
    """Dequantize a matrix, or several of one shape, to float32.

    Args:
        codes: (…, out, in).
        scales: one for all, or (…, ⌈out / block[0]⌉, ⌈in / block[1]⌉).
        block: rows and columns of a block; None if there is one scale for all.

    Raises:
        UnreadableError: the scales have another shape.

    Example:
        >>> scale_blocks(torch.ones(2, 3), torch.tensor([[2.0, 4.0]]), [2, 2])
        tensor([[2., 2., 4.],
                [2., 2., 4.]])
    """
    factors = (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.float()
    if scales.numel() == 1:
        return codes.float() * factors
    if block is None:
        # A vector of scales might be for rows or for columns.
        raise UnreadableError(f"there is no weight_block_size, and scales of the shape {tuple(scales.shape)}")
    rows, columns = codes.shape[-2:]
    needed = (-(-rows // block[0]), -(-columns // block[1]))
    if tuple(scales.shape) != (*codes.shape[:-2], *needed):
        raise UnreadableError(f"a matrix of {rows} × {columns} has scales of the shape {tuple(scales.shape)}")
    factors = factors.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]
    return codes.float() * factors


FLOAT8 = Dequantizer(dequantize=_float8, check=_check_float8)


VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CODES, _SCALES = "_blocks", "_scales"


def _mxfp4(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    plain: PlainTensors = {}
    for name, tensor in stored.tensors.items():
        if name.endswith(_CODES):
            stem = name.removesuffix(_CODES)
            scales = stored.tensors.get(stem + _SCALES)
            if scales is None:
                raise UnreadableError(f"'{name}' is without its scales")
            # The class multiplies from the other side: (experts, in, out).
            plain[stem] = decode_mxfp4(tensor, scales).transpose(-1, -2).contiguous()
        elif not name.endswith(_SCALES):
            plain[name] = tensor
    return plain


def decode_mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """Dequantize MXFP4 to float32.

    Args:
        codes: (…, groups, 16) bytes.
        scales: (…, groups) bytes.

    Returns:
        (…, 32 · groups).

    Example:
        >>> decode_mxfp4(torch.full((1, 16), 0x21, dtype=torch.uint8), torch.tensor([127], dtype=torch.uint8))[:4]
        tensor([0.5000, 1.0000, 0.5000, 1.0000])
    """
    values = torch.tensor([*VALUES, *(-value for value in VALUES)])
    pairs = torch.stack([values[(codes & 15).long()], values[(codes >> 4).long()]], -1)
    numbers = torch.ldexp(pairs.flatten(-2), scales.int().unsqueeze(-1) - 127)
    return numbers.flatten(-2)


MXFP4 = Dequantizer(dequantize=_mxfp4)
