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
