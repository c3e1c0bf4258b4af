"""Readers of GPTQ and AWQ checkpoints: evenly spaced codes in words of 32 bits.

W[o, i] = s[g(i), o] · (q[i, o] − z[g(i), o]). AutoGPTQ and GPT-QModel pack q along the inputs and z along the outputs,
each as one stream of bits, the lowest first, and list the group of each input in g_idx. In the layout `gptq` they store
z − 1, in `gptq_v2` z. AutoAWQ's GEMM layout packs both along the outputs in the order 0, 2, 4, 6, 1, 3, 5, 7; its
groups are neighbouring inputs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from laconic.errors import quote
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix, unpack_rows
from laconic.model.checkpoints.quantized.readers import Dequantizer, PlainTensors, StoredTensors, UnreadableError
from laconic.numerics.packing import pack

WORD = 32
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The position of each output in a word of AutoAWQ."""
BITS = (2, 3, 4, 8)
"""The bits of a code that GPTQ checkpoints have."""
V1, V2 = "gptq", "gptq_v2"
"""The layouts of GPTQ: zero points less one, and zero points."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def row_bytes(words: Int32[Tensor, "words columns"]) -> UInt8[Tensor, "columns bytes"]:
    """The stream of bits of each column of a matrix of words.

    Example:
        >>> row_bytes(torch.tensor([[0x0201], [0x04]], dtype=torch.int32))
        tensor([[1, 2, 0, 0, 4, 0, 0, 0]], dtype=torch.uint8)
    """
    return words.T.contiguous().view(torch.uint8)


def _check_gptq(config: Mapping[str, Any]) -> None:
    layout = config.get("checkpoint_format", V1)
    if layout not in (V1, V2):
        raise UnreadableError(f"its checkpoint_format is '{layout}', and known are {V1} and {V2}")
    if config.get("bits") not in BITS:
        raise UnreadableError(f"its bits are {quote(config.get('bits'))}, and known are 2, 3, 4 and 8")


def _gptq(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    bits = int(config["bits"])
    offset = 0 if config.get("checkpoint_format") == V2 else 1
    plain = _unquantized(stored)
    for module, parts in _modules(stored):
        words, scales = parts["qweight"], parts["scales"]
        inputs, outputs = words.shape[0] * WORD // bits, words.shape[1]
        zeros = unpack_rows(parts["qzeros"].contiguous().view(torch.uint8), bits)[:, :outputs]
        zeros = (zeros.int() + offset) & (2**bits - 1)
        group_index = parts.get("g_idx")
        _check_shapes(module, (inputs, outputs), zeros, scales)
        if group_index is not None:
            _check_groups(group_index, module, len(scales), inputs)
        plain[f"{module}.weight"] = CodedMatrix(
            packed=row_bytes(words),
            shape=(outputs, inputs),
            bits=bits,
            scale=scales.T.contiguous(),
            zero=_zero_points(zeros.T.contiguous(), bits),
            group_index=group_index,
        )
    return plain


def _check_awq(config: Mapping[str, Any]) -> None:
    layout = str(config.get("version", "gemm")).lower()
    if layout != "gemm":
        raise UnreadableError(f"its version is '{layout}', and known is gemm")
    if config.get("bits", config.get("w_bit", 4)) != 4:
        raise UnreadableError(f"its bits are {quote(config.get('bits', config.get('w_bit')))}, and known are 4")


def _awq(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    plain = _unquantized(stored)
    for module, parts in _modules(stored):
        codes, zeros = (_unpack_awq(parts[name]) for name in ("qweight", "qzeros"))
        _check_shapes(module, (codes.shape[0], codes.shape[1]), zeros, parts["scales"])
        shape = (codes.shape[1], codes.shape[0])
        plain[f"{module}.weight"] = CodedMatrix(
            packed=pack(codes.T.reshape(-1), 4).view(shape[0], -1),
            shape=shape,
            bits=4,
            scale=parts["scales"].T.contiguous(),
            zero=_zero_points(zeros.T.contiguous(), 4),
        )
    return plain


def _unpack_awq(words: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows codes"]:
    codes = unpack_rows(words.contiguous().view(torch.uint8), 4)
    return codes.view(len(words), -1, len(ORDER))[:, :, list(ORDER)].flatten(1)


def _zero_points(zeros: Tensor, bits: int) -> Tensor | None:
    """The zero points; None if they are those of a symmetric grid."""
    return None if not zeros.is_meta and bool((zeros == 2 ** (bits - 1)).all()) else zeros


def _check_shapes(module: str, codes: tuple[int, int], zeros: Tensor, scales: Tensor) -> None:
    """Raise UnreadableError unless scales and zero points (groups, out) fit the codes (in, out)."""
    fits = zeros.shape == scales.shape and codes[1:] == scales.shape[1:]
    if not fits or not 0 < len(scales) <= codes[0] or codes[0] % len(scales):
        raise UnreadableError(f"'{module}' has codes of the shape {codes} and scales of {tuple(scales.shape)}")


def _check_groups(g_idx: Tensor, module: str, groups: int, inputs: int) -> None:
    """Raise UnreadableError unless g_idx names a group for each input."""
    if g_idx.shape != (inputs,) or g_idx.is_floating_point():
        raise UnreadableError(
            f"'{module}' has a g_idx of the shape {tuple(g_idx.shape)} and type {g_idx.dtype} for {inputs} inputs"
        )
    if not g_idx.is_meta and (g_idx.min() < 0 or g_idx.max() >= groups):
        raise UnreadableError(
            f"'{module}' has the groups {g_idx.min()} to {g_idx.max()} in its g_idx, and {groups} scales"
        )


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


def _unquantized(stored: StoredTensors) -> PlainTensors:
    return {name: tensor for name, tensor in stored.tensors.items() if name.rpartition(".")[2] not in _PARTS}


GPTQ = Dequantizer(dequantize=_gptq, check=_check_gptq)
AWQ = Dequantizer(dequantize=_awq, check=_check_awq)
