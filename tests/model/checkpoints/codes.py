"""Small models with their matrices as codes, packed here by what each layout says, one number after the other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def save_with_codes(model: PreTrainedModel, folder: Path, codes: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Save `model`, without the matrices of the modules in `codes`, with these tensors and the configuration `said`."""
    model.save_pretrained(folder)
    modules = {name.rpartition(".")[0] for name in codes}
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in modules or not name.endswith("weight")
    }
    kept = {name: tensor.contiguous() for name, tensor in kept.items() if name not in model.all_tied_weights_keys}
    save_file({**kept, **codes}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": dict(said)}))


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    """The matrices inside the blocks by the names of their modules, as (out, in)."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and "lm_head" not in name:
            weight = module.weight.detach().float()
            found[name] = weight.T if isinstance(module, Conv1D) else weight
    return found


def packed(integers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Integers of a few bits in words of int32, along the last dimension."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    rows = []
    for row in integers.tolist():
        words = []
        for start in range(0, len(row), per_word):
            word = sum(row[start + order[place]] << (bits * place) for place in range(per_word))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def gptq_codes(
    weight: Tensor, bits: int, group_size: int, generator: torch.Generator, *, less: int, shuffled: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of AutoGPTQ, the matrix that they stand for) of random codes in the shape of `weight` (out, in)."""
    outputs, inputs = weight.shape
    codes = torch.randint(2**bits, (outputs, inputs), generator=generator)
    groups = inputs // group_size
    zeros = torch.randint(1, 2**bits, (groups, outputs), generator=generator)
    scales = (torch.rand(groups, outputs, generator=generator) * 0.1).half()
    group = torch.arange(inputs) // group_size
    if shuffled:
        group = group[torch.randperm(inputs, generator=generator)]
    matrix = torch.empty(outputs, inputs)
    for o in range(outputs):
        for i in range(inputs):
            g = int(group[i])
            matrix[o, i] = float(scales[g, o]) * int(codes[o, i] - zeros[g, o])
    tensors = {
        "qweight": packed(codes, bits).T.contiguous(),
        "qzeros": packed(zeros - less, bits),
        "scales": scales,
        "g_idx": group.int(),
    }
    return tensors, matrix


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_codes(weight: Tensor, group_size: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of AutoAWQ, the matrix that they stand for) of random codes in the shape of `weight` (out, in)."""
    outputs, inputs = weight.shape
    codes = torch.randint(16, (inputs, outputs), generator=generator)
    zeros = torch.randint(16, (inputs // group_size, outputs), generator=generator)
    scales = (torch.rand(inputs // group_size, outputs, generator=generator) * 0.1).half()
    matrix = torch.empty(outputs, inputs)
    for o in range(outputs):
        for i in range(inputs):
            g = i // group_size
            matrix[o, i] = float(scales[g, o]) * int(codes[i, o] - zeros[g, o])
    tensors = {"qweight": packed(codes, 4, AWQ_ORDER), "qzeros": packed(zeros, 4, AWQ_ORDER), "scales": scales}
    return tensors, matrix


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of nf4."""


def nf4_codes(weight: Tensor, generator: torch.Generator, twice: bool) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of bitsandbytes, the matrix that they stand for) of random codes in the shape of `weight` (out, in).

    Args:
        weight: only its shape is used; its size is a multiple of 64.
        generator: draws the codes.
        twice: the scales of blocks are codes too.
    """
    count, block = weight.numel(), 64
    codes = torch.randint(16, (count,), generator=generator)
    absmax = torch.rand(count // block, generator=generator)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(weight.shape)}
    tensors = {"weight.quant_map": torch.tensor(NF4)}
    if twice:
        inner = torch.randint(256, (len(absmax),), generator=generator, dtype=torch.uint8)
        table = torch.rand(256, generator=generator)
        outer = torch.rand(-(-len(inner) // 256), generator=generator)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
        tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": table, "weight.absmax": inner}
        absmax = torch.stack([table[int(code)] * outer[k // 256] + 0.25 for k, code in enumerate(inner)])
    else:
        tensors["weight.absmax"] = absmax
    numbers = [float(torch.tensor(NF4[int(code)]) * absmax[k // block]) for k, code in enumerate(codes)]
    tensors["weight"] = torch.tensor(
        [int(first) << 4 | int(second) for first, second in codes.view(-1, 2)], dtype=torch.uint8
    )[:, None]
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors, torch.tensor(numbers).half().float().view(weight.shape)


def int8_codes(weight: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of bitsandbytes, the matrix that they stand for) of random int8 codes in the shape of `weight`."""
    codes = torch.randint(-127, 128, weight.shape, generator=generator, dtype=torch.int8)
    largest = torch.rand(len(weight), generator=generator)
    tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, codes * largest[:, None] * 7.874015718698502e-3


def compressed_codes(
    weight: Tensor, bits: int, group: int, generator: torch.Generator, *, symmetric: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """(tensors of compressed-tensors, pack-quantized, the matrix that they stand for) in the shape of `weight`."""
    rows, columns = weight.shape
    codes = torch.randint(2**bits, (rows, columns), generator=generator)
    zeros = torch.randint(2**bits, (rows, columns // group), generator=generator)
    scales = (torch.rand(rows, columns // group, generator=generator) * 0.1).bfloat16()
    tensors = {
        "weight_packed": packed(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    else:
        filled = torch.nn.functional.pad(zeros.T, (0, -rows % (32 // bits)))
        tensors["weight_zero_point"] = packed(filled, bits).T.contiguous()
    matrix = torch.empty(rows, columns)
    for o in range(rows):
        for i in range(columns):
            matrix[o, i] = float(scales[o, i // group]) * int(codes[o, i] - zeros[o, i // group])
    return tensors, matrix
