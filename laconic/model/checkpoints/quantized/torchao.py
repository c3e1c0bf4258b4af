"""The reader of torchao, whose tensors only its package can build."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor

from laconic.model.checkpoints.quantized.readers import Dequantizer, PlainTensors, StoredTensors, UnreadableError


def _read(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    support: Any = import_module("torchao.prototype.safetensors.safetensors_support")
    try:
        quantized, rest = support.unflatten_tensor_state_dict(dict(stored.tensors), dict(stored.metadata))
    except (ValueError, KeyError, AssertionError) as error:
        raise UnreadableError(f"torchao says: {error}") from error
    dense = {name: tensor if type(tensor) is Tensor else tensor.dequantize() for name, tensor in quantized.items()}
    return {**rest, **dense}


TORCHAO = Dequantizer(dequantize=_read, package="torchao", min_version="0.15")
