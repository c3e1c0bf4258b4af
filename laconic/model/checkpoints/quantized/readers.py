"""Dequantizes the checkpoints of one library: takes the tensors of its files, gives plain matrices.

Weights in 8-bit floats with a scale for each block, as DeepSeek-V3 and Qwen3-FP8 are stored.

W[i, j] = W8[i, j] · S[i // b, j // c], with blocks of b × c, the last of each row and column cut off where the matrix
ends (DeepSeek-V3 technical report, arXiv:2412.19437, section 3.3).

Experts in 4-bit floats with one power of two for every 32, as gpt-oss is stored.

Each code is a float of 1 bit for its sign, 2 for its exponent and 1 for its mantissa, the first of two in the low half
of a byte; a scale is the exponent of two, plus 127 (OCP Microscaling Formats 1.0, section 5).

Integers of a few bits, several in one int32, with scales and zeros for each group: as GPTQ and AWQ are stored.

Both mean W[o, i] = s[g(i), o] · (q[i, o] − z[g(i), o]). AutoGPTQ (and GPT-QModel) packs q along the inputs, z along the
outputs and less by one, and lists the group of each input in g_idx; AutoAWQ's GEMM layout packs both along the outputs,
in the order 0, 2, 4, 6, 1, 3, 5, 7, and its groups are neighbours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from laconic.errors import shown


class UnreadableError(Exception):
    """Why codes cannot be turned into numbers; the end of a sentence."""


@dataclass(frozen=True)
class StoredTensors:
    """What the files of a model hold.

    tensors:  by name, as stored.
    metadata: of the files, as safetensors has it.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How the checkpoints of one library are read.

    dequantize: takes the stored tensors and the model's `quantization_config`. Returns the tensors of the plain model:
        each matrix as `<module>.weight` of shape (out, in) in float32, everything else as it is stored. It is run
        without numbers first, on the meta device, which shows what names, dtypes and shapes show.
    check: raises UnreadableError for a `quantization_config` that `dequantize` cannot read.
    package: the package that it needs, if any.
    least: the oldest version of it that will do.
    """

    dequantize: Callable[[StoredTensors, Mapping[str, Any]], dict[str, Tensor]]
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    package: str | None = None
    least: str | None = None


SCALE = "weight_scale_inv"
USUAL_BLOCK = [128, 128]
"""Default of transformers, for configurations without a block size."""
_OF_ACTIVATIONS = ("activation_scale", "input_scale")


def _check_float8(said: Mapping[str, Any]) -> None:
    block = said.get("weight_block_size", USUAL_BLOCK)
    is_pair = isinstance(block, list) and len(block) == 2
    if block is not None and not (is_pair and all(type(size) is int and size > 0 for size in block)):
        raise UnreadableError(f"its weight_block_size is {shown(block)}, and known are two whole numbers above 0")


def _float8(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
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
        found[name] = scale_blocks(tensor, scales, block)
    return found


def scale_blocks(codes: Tensor, scales: Tensor, block: list[int] | None) -> Tensor:
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


FLOAT8 = Reader(dequantize=_float8, check=_check_float8)


VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CODES, _SCALES = "_blocks", "_scales"


def _mxfp4(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in held.tensors.items():
        if name.endswith(_CODES):
            stem = name.removesuffix(_CODES)
            scales = held.tensors.get(stem + _SCALES)
            if scales is None:
                raise UnreadableError(f"'{name}' is without its scales")
            # The class multiplies from the other side: (experts, in, out).
            found[stem] = decode_mxfp4(tensor, scales).transpose(-1, -2).contiguous()
        elif not name.endswith(_SCALES):
            found[name] = tensor
    return found


def decode_mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """The numbers in float32, of shape (…, 32 · groups), of codes (…, groups, 16) and scales (…, groups), in bytes."""
    values = torch.tensor([*VALUES, *(-value for value in VALUES)])
    pairs = torch.stack([values[(codes & 15).long()], values[(codes >> 4).long()]], -1)
    numbers = torch.ldexp(pairs.flatten(-2), scales.int().unsqueeze(-1) - 127)
    return numbers.flatten(-2)


MXFP4 = Reader(dequantize=_mxfp4)


WORD = 32
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AutoAWQ each output lies."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def unpack_integers(words: Tensor, bits: int, axis: int) -> Tensor:
    """The integers in `words` of int32, the lowest bits first, side by side along `axis` (0 or 1)."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    spread = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return spread.flatten(1) if axis == 1 else spread.transpose(1, 2).flatten(0, 1)


def _check_gptq(said: Mapping[str, Any]) -> None:
    layout = said.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise UnreadableError(f"its checkpoint_format is '{layout}', and known are gptq and gptq_v2")
    if said.get("bits") not in (2, 4, 8):
        raise UnreadableError(f"its bits are {shown(said.get('bits'))}, and known are 2, 4 and 8")


def _gptq(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    bits = int(said["bits"])
    less = 0 if said.get("checkpoint_format") == "gptq_v2" else 1
    found = _others(held)
    for module, parts in _modules(held):
        codes, scales = unpack_integers(parts["qweight"], bits, 0), parts["scales"].float()
        zeros = (unpack_integers(parts["qzeros"], bits, 1) + less) & (2**bits - 1)
        _check_shapes(module, codes, zeros, scales)
        group = _groups_in(parts["g_idx"], module, scales, codes) if "g_idx" in parts else _neighbours(codes, scales)
        found[f"{module}.weight"] = (scales[group] * (codes - zeros[group])).T.contiguous()
    return found


def _check_awq(said: Mapping[str, Any]) -> None:
    layout = str(said.get("version", "gemm")).lower()
    if layout != "gemm":
        raise UnreadableError(f"its version is '{layout}', and known is gemm")
    if said.get("bits", said.get("w_bit", 4)) != 4:
        raise UnreadableError(f"its bits are {shown(said.get('bits', said.get('w_bit')))}, and known are 4")


def _awq(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    found = _others(held)
    for module, parts in _modules(held):
        codes, zeros = (_in_order(unpack_integers(parts[name], 4, 1)) for name in ("qweight", "qzeros"))
        scales = parts["scales"].float()
        _check_shapes(module, codes, zeros, scales)
        group = _neighbours(codes, scales)
        found[f"{module}.weight"] = (scales[group] * (codes - zeros[group])).T.contiguous()
    return found


def _neighbours(codes: Tensor, scales: Tensor) -> Tensor:
    """The group of each input, for groups of equally many neighbours."""
    return torch.arange(len(codes)) // (len(codes) // len(scales))


def _groups_in(listed: Tensor, module: str, scales: Tensor, codes: Tensor) -> Tensor:
    """The group of each input, as `g_idx` lists them."""
    if listed.shape != codes.shape[:1] or listed.is_floating_point():
        raise UnreadableError(
            f"'{module}' has a g_idx of the shape {tuple(listed.shape)} and type {listed.dtype} for {len(codes)} inputs"
        )
    if not listed.is_meta and (listed.min() < 0 or listed.max() >= len(scales)):
        raise UnreadableError(
            f"'{module}' has the groups {listed.min()} to {listed.max()} in its g_idx, and {len(scales)} scales"
        )
    return listed.long()


def _in_order(codes: Tensor) -> Tensor:
    return codes.unflatten(1, (-1, len(ORDER)))[:, :, list(ORDER)].flatten(1)


def _modules(held: StoredTensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each module that has codes, and its tensors by what they are."""
    for name in held.tensors:
        module, _, last = name.rpartition(".")
        if last == "qweight":
            parts = {part: held.tensors[at] for part in _PARTS if (at := f"{module}.{part}") in held.tensors}
            if missing := {"qzeros", "scales"} - set(parts):
                raise UnreadableError(f"'{module}' is without {' and '.join(sorted(missing))}")
            for part in ("qweight", "qzeros"):
                if parts[part].dtype != torch.int32 or parts[part].dim() != 2:
                    raise UnreadableError(f"'{module}.{part}' is no matrix of int32")
            yield module, parts


def _others(held: StoredTensors) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in held.tensors.items() if name.rpartition(".")[2] not in _PARTS}


def _check_shapes(module: str, codes: Tensor, zeros: Tensor, scales: Tensor) -> None:
    fits = zeros.shape == scales.shape and codes.shape[1:] == scales.shape[1:]
    if not fits or not 0 < len(scales) <= len(codes) or len(codes) % len(scales):
        raise UnreadableError(
            f"'{module}' has codes of the shape {tuple(codes.shape)} and scales of {tuple(scales.shape)}"
        )


GPTQ = Reader(dequantize=_gptq, check=_check_gptq)
AWQ = Reader(dequantize=_awq, check=_check_awq)
