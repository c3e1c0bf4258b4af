"""The reader of bitsandbytes: tables of 16 values (nf4, fp4), and int8 with a scale for each row.

- 4 bits: the codes of the matrix in row order, two in a byte, the first in its high half; ŵ = table[code] · absmax for
  blocks of neighbouring weights, rounded to the dtype that the matrix had. With double quantization absmax is itself
  table₂[code₂] · absmax₂ + offset. A JSON text beside the tensors says shape, dtype and sizes of blocks
  (`QuantState.as_dict` of bitsandbytes; Dettmers et al., QLoRA, arXiv:2305.14314, section 3).
- int8: ŵ = code · SCB / 127, SCB the largest absolute value of each row (Dettmers et al., LLM.int8(), arXiv:2208.07339,
  section 2.1).
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.model.checkpoints.quantized.readers import Dequantizer, PlainTensors, StoredTensors, UnreadableError

STATE = "quant_state.bitsandbytes__"
"""The beginning of the name of the JSON text of a matrix."""
INVERSE_127 = 7.874015718698502e-3
"""1 / 127 as bitsandbytes multiplies by it."""
_INT8 = ("SCB", "weight_format")


def _read(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    plain: PlainTensors = {}
    for name, tensor in stored.tensors.items():
        module, _, last = name.rpartition(".")
        if last in _INT8 or ".weight." in name:
            continue
        beside = {key: part for key, part in stored.tensors.items() if key.startswith(f"{name}.")}
        state = {key.removeprefix(f"{name}."): part for key, part in beside.items()}
        if any(key.startswith(STATE) for key in state):
            plain[name] = _decode_4_bits(name, tensor, state)
        elif tensor.dtype == torch.int8 and last == "weight":
            if (scales := stored.tensors.get(f"{module}.SCB")) is None:
                raise UnreadableError(f"'{module}' is without its SCB")
            plain[name] = tensor * scales.view(-1, 1) * INVERSE_127
        else:
            plain[name] = tensor
    return plain


def _decode_4_bits(name: str, codes: Tensor, state: Mapping[str, Tensor]) -> Float[Tensor, "..."]:
    """The numbers of a tensor of 4-bit codes in float32.

    Args:
        name: the name of the tensor, for messages.
        codes: two codes in a byte.
        state: the tensors beside it, by the rest of their names.

    Raises:
        UnreadableError: a tensor is missing, or the text is not as described above.
    """
    text = next(part for key, part in state.items() if key.startswith(STATE))
    try:
        settings = json.loads(bytes(text.tolist()))
        shape, dtype = settings["shape"], getattr(torch, settings["dtype"])
        table, absmax, block = state["quant_map"], state["absmax"], settings["blocksize"]
        if "nested_absmax" in state:
            nested = state["nested_quant_map"][absmax.long()].view(-1)
            absmax = _scale_blocks(nested, state["nested_absmax"], settings["nested_blocksize"])
            absmax = absmax + settings["nested_offset"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableError(f"'{name}' is without {error}, or not as bitsandbytes 0.49 writes it") from error
    pairs = codes.reshape(-1)
    values = table[torch.stack([pairs >> 4, pairs & 15], -1).view(-1).long()]
    count = torch.Size(shape).numel()
    return _scale_blocks(values[:count], absmax, block).to(dtype).float().view(shape)


def _scale_blocks(values: Float[Tensor, " n"], scales: Float[Tensor, " blocks"], block: int) -> Float[Tensor, " n"]:
    """Multiply every block of neighbouring values by its scale; the last block may be shorter."""
    return values * scales.float().repeat_interleave(block)[: len(values)]


BITS_AND_BYTES = Dequantizer(dequantize=_read)
