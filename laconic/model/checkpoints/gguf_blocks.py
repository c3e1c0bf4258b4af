"""Keep the blocks of a GGUF file: linear layers compute with the very bytes of the file."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.formats import GgmlBlocks
from laconic.formats.base import byte_parameter
from laconic.numerics.ggml_blocks import BLOCK_TYPES


def file_names(model: PreTrainedModel, architecture: str, blocks: int) -> dict[str, str]:
    """The name in the file of each module with a `weight`, by its path.

    Args:
        model: the model, with or without weights.
        architecture: `general.architecture` of the file.
        blocks: the number of blocks of the model.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # noqa: PLC0415 (the checkpoint has checked that it is there)

    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        return {}
    names = get_tensor_name_map(kind, blocks)
    paths = [path for path, module in model.named_modules() if "weight" in module._parameters]
    return {path: name for path in paths if (name := names.get_name(path)) is not None}


@torch.no_grad()
def keep_blocks(model: PreTrainedModel, tensors: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Replace linear layers by formats with the blocks of the file, where these give the same numbers.

    Args:
        model: the model, with the numbers that were decoded; it is changed in place.
        tensors: the tensors of the package gguf, by name.
        names: the name in the file of each module, by path.
    """
    for path, name in names.items():
        tensor, module = tensors.get(f"{name}.weight"), model.get_submodule(path)
        if tensor is None or not isinstance(module, nn.Linear):
            continue
        blocks = tensor.tensor_type.name.lower()
        if blocks not in BLOCK_TYPES:
            continue
        rows = torch.from_numpy(tensor.data.copy()).view(torch.uint8).view(module.out_features, -1)
        for ordered in _row_orders(rows, model):
            layer = GgmlBlocks((module.out_features, module.in_features), blocks)
            layer.codes = byte_parameter(ordered.reshape(-1))
            if torch.equal(layer.dense(), module.weight):
                layer.set_bias(module.bias)
                model.set_submodule(path, layer.eval())
                break


def _row_orders(rows: Tensor, model: PreTrainedModel) -> Iterator[Tensor]:
    """The rows as they lie in the file, and those of heads in which llama.cpp turns neighbours by one angle."""
    yield rows
    config = model.config.get_text_config()
    heads = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    for count in dict.fromkeys(heads):
        if isinstance(count, int) and len(rows) % (2 * count) == 0:
            yield rows.view(count, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
