"""Models that another library quantized, loaded as plain weights.

`quantization_config` names the library. The layouts of fine-grained FP8, MXFP4, GPTQ and AWQ are read by laconic, those
of compressed-tensors, bitsandbytes and torchao by the library itself. Quantization of activations is ignored.
"""

import json
import tempfile
import warnings
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import CheckpointNotice, UserError, quote
from laconic.model.checkpoints.checkpoint import load_checked, report_load_errors, require_package
from laconic.model.checkpoints.fit import build_outline, check_shapes
from laconic.model.checkpoints.quantized.readers import (
    AWQ,
    FLOAT8,
    GPTQ,
    MXFP4,
    Dequantizer,
    StoredTensors,
    UnreadableError,
)
from laconic.model.checkpoints.weights import Weights, read_tensors
from laconic.model.stock import MODEL_ERRORS

STATE = ".quant_state.bitsandbytes__"
_INT8 = ("SCB", "weight_format")
WEIGHT_TRANSFORMS = {"weight_input", "weight_output"}
"""The places of a transform in compressed-tensors that are fused into the weights."""


def _check_compressed(config: Mapping[str, Any]) -> None:
    transforms, sparsity = config.get("transform_config"), config.get("sparsity_config")
    if transforms and _transforms_activations(transforms):
        raise UnreadableError(f"its transform_config is {quote(transforms)}")
    if isinstance(sparsity, dict) and sparsity and sparsity.get("format") != "dense":
        raise UnreadableError(f"its sparsity_config is {quote(sparsity)}")


def _transforms_activations(transforms: Any) -> bool:
    """Whether activations are transformed when the model runs. Transforms of weights are in the stored weights."""
    try:
        places = {entry["location"] for scheme in transforms["config_groups"].values() for entry in scheme["apply"]}
    except (AttributeError, KeyError, TypeError):
        return True
    return not places <= WEIGHT_TRANSFORMS


def _compressed(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantize each layer by the scheme of its own group; transformers 5.23 uses the first group's scheme for all."""
    convert: Any = import_module("compressed_tensors.entrypoints.convert.converters")
    quantization: Any = import_module("compressed_tensors.quantization")
    # By names alone, the converter takes every weight for one of the class "Linear" that groups have as their target.
    modules = {name.rpartition(".")[0] for name in stored.tensors}
    plain = [name for name in modules if f"{name}.weight_scale" not in stored.tensors]
    config = {**config, "ignore": [*(config.get("ignore") or ()), *plain]}
    with tempfile.TemporaryDirectory() as folder:
        # The converter reads the configuration only from a folder.
        (Path(folder) / "config.json").write_text(json.dumps({"quantization_config": config}), encoding="utf-8")
        try:
            dense = convert.CompressedTensorsDequantizer(folder, dtype=torch.float32).process(dict(stored.tensors))
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise UnreadableError(f"compressed-tensors says: {error}") from error
    parameters = set(quantization.QuantizationMetadata.all_qparam_names())
    return {name: tensor for name, tensor in dense.items() if name.rpartition(".")[2] not in parameters}


def _bits_and_bytes(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    functional: Any = import_module("bitsandbytes.functional")
    plain: dict[str, Tensor] = {}
    for name, tensor in stored.tensors.items():
        module, _, last = name.rpartition(".")
        if last in _INT8 or ".weight." in name:
            continue
        state = {key: value for key, value in stored.tensors.items() if key.startswith(f"{name}.")}
        if any(STATE in key for key in state):
            quant_state = functional.QuantState.from_dict(state, device=torch.device("cpu"))
            plain[name] = functional.dequantize_4bit(tensor, quant_state).float()
        elif tensor.dtype == torch.int8 and last == "weight":
            if (scales := stored.tensors.get(f"{module}.SCB")) is None:
                raise UnreadableError(f"'{module}' is without its SCB")
            plain[name] = functional.int8_vectorwise_dequant(tensor, scales).float()
        else:
            plain[name] = tensor
    return plain


def _torchao(stored: StoredTensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    support: Any = import_module("torchao.prototype.safetensors.safetensors_support")
    try:
        quantized, rest = support.unflatten_tensor_state_dict(dict(stored.tensors), dict(stored.metadata))
    except (ValueError, KeyError, AssertionError) as error:
        raise UnreadableError(f"torchao says: {error}") from error
    dense = {name: tensor if type(tensor) is Tensor else tensor.dequantize() for name, tensor in quantized.items()}
    return {**rest, **dense}


COMPRESSED = Dequantizer(
    dequantize=_compressed, check=_check_compressed, package="compressed-tensors", min_version="0.20"
)
DEQUANTIZERS: Mapping[str, Dequantizer] = {
    "awq": AWQ,
    "bitsandbytes": Dequantizer(dequantize=_bits_and_bytes, package="bitsandbytes", min_version="0.49"),
    "compressed-tensors": COMPRESSED,
    "fp8": FLOAT8,
    "gptq": GPTQ,
    "mxfp4": MXFP4,
    "torchao": Dequantizer(dequantize=_torchao, package="torchao", min_version="0.15"),
}
"""The reader of each `quant_method`."""


def quant_method(quantization: Mapping[str, Any]) -> str | None:
    """The library that a `quantization_config` names; old configurations of bitsandbytes do not name it."""
    method = quantization.get("quant_method")
    if method is None and (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        return "bitsandbytes"
    return method


def check_quantization(quantization: Mapping[str, Any], source: str) -> None:
    """Check that a quantized model can be read, by its `quantization_config`.

    Args:
        quantization: the `quantization_config`.
        source: the model, as errors name it.

    Raises:
        UserError: the library or its settings are not supported, or a package is not installed.
    """
    method = quant_method(quantization)
    reader = DEQUANTIZERS.get(str(method))
    if reader is None:
        raise UserError(
            f"The model '{source}' is quantized by '{method or 'an unnamed library'}', which laconic does not read (it "
            f"reads {', '.join(DEQUANTIZERS)}); use the model that it was made from."
        )
    if reader.package is not None:
        subject = f"The model '{source}' is quantized by '{method}', so it"
        require_package(reader.package, subject, min_version=reader.min_version)
    try:
        reader.check(quantization)
    except UnreadableError as error:
        raise _unreadable_error(source, method, error) from error


def check_quantized_tensors(
    config: PreTrainedConfig,
    weights: Weights,
    quantization: Mapping[str, Any],
    source: str,
    external_names: Collection[str] = (),
) -> None:
    """Check names, dtypes and shapes of quantized tensors; no weight is read.

    Args:
        config: the configuration without its `quantization_config`.
        weights: the files.
        quantization: the `quantization_config`.
        source: the model, as errors name it.
        external_names: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: as `load_dequantized`, for errors that the headers show.
    """
    method = quant_method(quantization)
    try:
        with torch.device("meta"):
            stored = StoredTensors(_empty_tensors(weights), _metadata(weights))
            plain = DEQUANTIZERS[str(method)].dequantize(stored, quantization)
    except UnreadableError as error:
        raise _unreadable_error(source, method, error) from error
    except MODEL_ERRORS:
        # Some libraries need the numbers; `load_dequantized` runs the same code on them and reports the error.
        return
    if len(plain) == len(stored.tensors) and all(tensor is stored.tensors.get(name) for name, tensor in plain.items()):
        raise UserError(
            f"The config.json of '{source}' says that it is quantized by '{method}', and its files hold no codes; take "
            "the config.json that was saved with the weights."
        )
    oriented = _orient(build_outline(config, source), plain, stored)
    check_shapes({name: tuple(tensor.shape) for name, tensor in oriented.items()}, config, source, external_names)


def load_dequantized(
    config: PreTrainedConfig,
    weights: Weights,
    quantization: Mapping[str, Any],
    source: str,
    external_names: Collection[str] = (),
) -> PreTrainedModel:
    """Load a quantized model in float32.

    Args:
        config: the configuration without its `quantization_config`.
        weights: the files.
        quantization: the `quantization_config`, which `check_quantization` accepted.
        source: the model, as errors name it.
        external_names: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: the codes cannot be read, or the tensors do not match the configuration.
    """
    method = quant_method(quantization)
    warnings.warn(
        f"The model '{source}' is quantized by '{method}': its codes are turned into numbers, and saved as such.",
        CheckpointNotice,
        stacklevel=2,
    )
    outline = build_outline(config, source)
    try:
        with report_load_errors(source):
            files = [read_tensors(file, weights.are_safe) for file in weights.files]
            tensors = {name: tensor for file in files for name, tensor in file.items()}
            stored = StoredTensors(tensors, _metadata(weights))
            plain = _orient(outline, DEQUANTIZERS[str(method)].dequantize(stored, quantization), stored)
    except UnreadableError as error:
        raise _unreadable_error(source, method, error) from error
    model = load_checked(
        type(outline),
        config,
        source,
        external_names=external_names,
        pretrained_model_name_or_path=None,
        state_dict=plain,
    )
    if model.can_generate() and (weights.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(weights.folder))
    return model


def _empty_tensors(weights: Weights) -> dict[str, Tensor]:
    """Every stored tensor by name, on the meta device.

    Raises:
        ValueError: torch does not have the dtype of a tensor.
    """
    empty = {}
    for name, (shape, dtype) in weights.headers().items():
        if isinstance(dtype, str):
            raise ValueError(f"'{name}' is of the type {dtype}")
        empty[name] = torch.empty(shape, dtype=dtype, device="meta")
    return empty


def _metadata(weights: Weights) -> dict[str, str]:
    """The metadata of safetensors files; empty for pickles."""
    metadata: dict[str, str] = {}
    for file in weights.files if weights.are_safe else ():
        with safe_open(file, framework="pt") as tensors:
            metadata |= tensors.metadata() or {}
    return metadata


def _orient(outline: PreTrainedModel, plain: dict[str, Tensor], stored: StoredTensors) -> dict[str, Tensor]:
    """The matrices in the orientation of the class: a Conv1D of GPT-2 holds (in, out), and readers return (out, in)."""
    conv1d = {f"{name}.weight" for name, module in outline.named_modules() if isinstance(module, Conv1D)}
    conv1d |= {name.removeprefix(f"{outline.base_model_prefix}.") for name in conv1d}
    return {
        name: tensor.T.contiguous() if name in conv1d and tensor is not stored.tensors.get(name) else tensor
        for name, tensor in plain.items()
    }


def _unreadable_error(source: str, method: str | None, error: UnreadableError) -> UserError:
    return UserError(
        f"The model '{source}' is quantized by '{method}' in a way that laconic does not read: {error}; "
        "use the model that it was made from."
    )
