"""Readers that call another library: compressed-tensors, bitsandbytes and torchao."""

import json
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.errors import quote
from laconic.model.checkpoints.quantized.readers import Reader, StoredTensors, UnreadableError

STATE = ".quant_state.bitsandbytes__"
_INT8 = ("SCB", "weight_format")
OF_WEIGHTS = {"weight_input", "weight_output"}
"""The places of a transform in compressed-tensors that are fused into the weights."""


def _check_compressed(said: Mapping[str, Any]) -> None:
    transforms, sparsity = said.get("transform_config"), said.get("sparsity_config")
    if transforms and _transforms_activations(transforms):
        raise UnreadableError(f"its transform_config is {quote(transforms)}")
    if isinstance(sparsity, dict) and sparsity and sparsity.get("format") != "dense":
        raise UnreadableError(f"its sparsity_config is {quote(sparsity)}")


def _transforms_activations(transforms: Any) -> bool:
    """Whether anything but weights is transformed as the model runs; stored weights already are."""
    try:
        places = {one["location"] for scheme in transforms["config_groups"].values() for one in scheme["apply"]}
    except (AttributeError, KeyError, TypeError):
        return True
    return not places <= OF_WEIGHTS


def _compressed(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantize each layer by its own group's scheme; transformers 5.23 uses that of the first for all."""
    convert: Any = import_module("compressed_tensors.entrypoints.convert.converters")
    quantization: Any = import_module("compressed_tensors.quantization")
    with tempfile.TemporaryDirectory() as folder:
        # Its converter reads the configuration from a folder alone.
        (Path(folder) / "config.json").write_text(json.dumps({"quantization_config": said}), encoding="utf-8")
        try:
            dense = convert.CompressedTensorsDequantizer(folder, dtype=torch.float32).process(dict(held.tensors))
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise UnreadableError(f"compressed-tensors says: {error}") from error
    left = set(quantization.QuantizationMetadata.all_qparam_names())
    return {name: tensor for name, tensor in dense.items() if name.rpartition(".")[2] not in left}


def _bits_and_bytes(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    functional: Any = import_module("bitsandbytes.functional")
    found: dict[str, Tensor] = {}
    for name, tensor in held.tensors.items():
        module, _, last = name.rpartition(".")
        if last in _INT8 or ".weight." in name:
            continue
        about = {key: value for key, value in held.tensors.items() if key.startswith(f"{name}.")}
        if any(STATE in key for key in about):
            state = functional.QuantState.from_dict(about, device=torch.device("cpu"))
            found[name] = functional.dequantize_4bit(tensor, state).float()
        elif tensor.dtype == torch.int8 and last == "weight":
            if (scales := held.tensors.get(f"{module}.SCB")) is None:
                raise UnreadableError(f"'{module}' is without its SCB")
            found[name] = functional.int8_vectorwise_dequant(tensor, scales).float()
        else:
            found[name] = tensor
    return found


def _torchao(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    support: Any = import_module("torchao.prototype.safetensors.safetensors_support")
    try:
        found, left = support.unflatten_tensor_state_dict(dict(held.tensors), dict(held.metadata))
    except (ValueError, KeyError, AssertionError) as error:
        raise UnreadableError(f"torchao says: {error}") from error
    dense = {name: tensor if type(tensor) is Tensor else tensor.dequantize() for name, tensor in found.items()}
    return {**left, **dense}


COMPRESSED = Reader(dequantize=_compressed, check=_check_compressed, package="compressed-tensors", least="0.20")
BITS_AND_BYTES = Reader(dequantize=_bits_and_bytes, package="bitsandbytes", least="0.49")
TORCHAO = Reader(dequantize=_torchao, package="torchao", least="0.15")
