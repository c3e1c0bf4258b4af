"""Integers of a few bits, several in one int32, with scales and zeros for each group: as GPTQ and AWQ are stored.

Both mean W[o, i] = s[g(i), o] · (q[i, o] − z[g(i), o]). AutoGPTQ (and GPT-QModel) packs q along the inputs, z along the
outputs and less by one, and lists the group of each input in g_idx; AutoAWQ's GEMM layout packs both along the outputs,
in the order 0, 2, 4, 6, 1, 3, 5, 7, and its groups are neighbours.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import shown
from laconic.model.checkpoints.quantized.reader import Reader, StoredTensors, UnreadableError

WORD = 32
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AutoAWQ each output lies."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def unpacked(words: Tensor, bits: int, axis: int) -> Tensor:
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
        codes, scales = unpacked(parts["qweight"], bits, 0), parts["scales"].float()
        zeros = (unpacked(parts["qzeros"], bits, 1) + less) & (2**bits - 1)
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
        codes, zeros = (_in_order(unpacked(parts[name], 4, 1)) for name in ("qweight", "qzeros"))
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
