"""Readers of quantized checkpoints: FP8 with block scales, MXFP4, GPTQ and AWQ.

- FP8 (DeepSeek-V3, Qwen3-FP8): W[i, j] = W8[i, j] · S[i // b, j // c] for blocks of b × c (DeepSeek-V3 technical
  report, arXiv:2412.19437, section 3.3).
- MXFP4 (gpt-oss): floats with 1 sign bit, 2 exponent bits and 1 mantissa bit. A byte contains two of them, the first in
  its low half. Every 32 floats share a scale 2^e, stored as e + 127 (OCP Microscaling Formats 1.0, section 5).
- GPTQ and AWQ: W[o, i] = s[g(i), o] · (q[i, o] − z[g(i), o]), several integers in one int32. AutoGPTQ and GPT-QModel
  pack q along the inputs and z − 1 along the outputs, and list the group of each input in g_idx. AutoAWQ's
  GEMM layout packs both along the outputs in the order 0, 2, 4, 6, 1, 3, 5, 7; its groups are neighbouring inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laconic.errors import quote


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
            matrix as `<module>.weight` (out, in) in float32, everything else as stored. It is run on the meta device
            first, to check names, dtypes and shapes.
        check: raises UnreadableError for a `quantization_config` that `dequantize` cannot read.
        package: the package that it needs; None for none.
        min_version: its oldest supported version.
    """

    dequantize: Callable[[StoredTensors, Mapping[str, Any]], dict[str, Tensor]]
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    package: str | None = None
    min_version: str | None = None


SCALE = "weight_scale_inv"
DEFAULT_BLOCK = [128, 128]
"""The block size of configurations that name none, as in transformers."""
_ACTIVATION_SCALES = ("activation_scale", "input_scale")


def _check_float8(config: Mapping[str, Any]) -> None:
    block = config.get("weight_block_size", DEFAULT_BLOCK)
    is_pair = isinstance(block, list) and len(block) == 2
    if block is not None and not (is_pair and all(type(size) is int and size > 0 for size in block)):
        raise UnreadableError(f"its weight_block_size is {quote(block)}, and known are two whole numbers above 0")


def _float8(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    block = config.get("weight_block_size", DEFAULT_BLOCK)
    plain = {}
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


def _mxfp4(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    plain = {}
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


WORD = 32
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The position of each output in a word of AutoAWQ."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def unpack_integers(words: Tensor, bits: int, axis: int) -> Tensor:
    """Unpack integers from int32, the lowest bits first.

    Args:
        words: a matrix of int32.
        bits: bits of one integer.
        axis: the axis (0 or 1) along which they are unpacked.

    Example:
        >>> unpack_integers(torch.tensor([[0x21]], dtype=torch.int32), 4, 1)
        tensor([[1, 2, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    spread = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return spread.flatten(1) if axis == 1 else spread.transpose(1, 2).flatten(0, 1)


def _check_gptq(config: Mapping[str, Any]) -> None:
    layout = config.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise UnreadableError(f"its checkpoint_format is '{layout}', and known are gptq and gptq_v2")
    if config.get("bits") not in (2, 4, 8):
        raise UnreadableError(f"its bits are {quote(config.get('bits'))}, and known are 2, 4 and 8")


def _gptq(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    bits = int(config["bits"])
    offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    plain = _unquantized(stored)
    for module, parts in _modules(stored):
        codes = unpack_integers(parts["qweight"], bits, 0)
        zeros = (unpack_integers(parts["qzeros"], bits, 1) + offset) & (2**bits - 1)
        plain[f"{module}.weight"] = _dequantize(module, codes, zeros, parts["scales"].float(), parts.get("g_idx"))
    return plain


def _check_awq(config: Mapping[str, Any]) -> None:
    layout = str(config.get("version", "gemm")).lower()
    if layout != "gemm":
        raise UnreadableError(f"its version is '{layout}', and known is gemm")
    if config.get("bits", config.get("w_bit", 4)) != 4:
        raise UnreadableError(f"its bits are {quote(config.get('bits', config.get('w_bit')))}, and known are 4")


def _awq(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    plain = _unquantized(stored)
    for module, parts in _modules(stored):
        codes, zeros = (
            unpack_integers(parts[name], 4, 1).unflatten(1, (-1, len(ORDER)))[:, :, list(ORDER)].flatten(1)
            for name in ("qweight", "qzeros")
        )
        plain[f"{module}.weight"] = _dequantize(module, codes, zeros, parts["scales"].float())
    return plain


def _dequantize(module: str, codes: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor | None = None) -> Tensor:
    """The weight (out, in) of codes (in, out), with scales and zero points (groups, out).

    `g_idx` (in,) is the group of each input; by default, groups are equally many neighbouring inputs.
    """
    fits = zeros.shape == scales.shape and codes.shape[1:] == scales.shape[1:]
    if not fits or not 0 < len(scales) <= len(codes) or len(codes) % len(scales):
        raise UnreadableError(
            f"'{module}' has codes of the shape {tuple(codes.shape)} and scales of {tuple(scales.shape)}"
        )
    if g_idx is None:
        group = torch.arange(len(codes)) // (len(codes) // len(scales))
    else:
        group = _check_groups(g_idx, module, scales, codes)
    return (scales[group] * (codes - zeros[group])).T.contiguous()


def _check_groups(g_idx: Tensor, module: str, scales: Tensor, codes: Tensor) -> Tensor:
    """The group of each input from `g_idx`, after a check of its shape and values."""
    if g_idx.shape != codes.shape[:1] or g_idx.is_floating_point():
        raise UnreadableError(
            f"'{module}' has a g_idx of the shape {tuple(g_idx.shape)} and type {g_idx.dtype} for {len(codes)} inputs"
        )
    if not g_idx.is_meta and (g_idx.min() < 0 or g_idx.max() >= len(scales)):
        raise UnreadableError(
            f"'{module}' has the groups {g_idx.min()} to {g_idx.max()} in its g_idx, and {len(scales)} scales"
        )
    return g_idx.long()


def _modules(stored: StoredTensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each quantized module with its tensors by name."""
    for name in stored.tensors:
        module, _, last = name.rpartition(".")
        if last == "qweight":
            parts = {part: stored.tensors[path] for part in _PARTS if (path := f"{module}.{part}") in stored.tensors}
            if missing := {"qzeros", "scales"} - set(parts):
                raise UnreadableError(f"'{module}' is without {' and '.join(sorted(missing))}")
            for part in ("qweight", "qzeros"):
                if parts[part].dtype != torch.int32 or parts[part].dim() != 2:
                    raise UnreadableError(f"'{module}.{part}' is no matrix of int32")
            yield module, parts


def _unquantized(stored: StoredTensors) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored.tensors.items() if name.rpartition(".")[2] not in _PARTS}


GPTQ = Dequantizer(dequantize=_gptq, check=_check_gptq)
AWQ = Dequantizer(dequantize=_awq, check=_check_awq)
