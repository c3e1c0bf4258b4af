"""Models that another library quantized, loaded as plain weights or with their codes.

`quantization_config` names the library. The layouts of fine-grained FP8, MXFP4, GPTQ, AWQ, bitsandbytes and the usual
ones of compressed-tensors are read by laconic, torchao and the others of compressed-tensors by the library itself.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import CheckpointNotice, UserError
from laconic.model.checkpoints.checkpoint import load_checked, report_load_errors, require_package
from laconic.model.checkpoints.fit import build_outline, check_shapes
from laconic.model.checkpoints.quantized.bits_and_bytes import BITS_AND_BYTES
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix
from laconic.model.checkpoints.quantized.compressed import COMPRESSED
from laconic.model.checkpoints.quantized.integers import AWQ, GPTQ
from laconic.model.checkpoints.quantized.keeping import keep_codes
from laconic.model.checkpoints.quantized.readers import (
    FLOAT8,
    MXFP4,
    Dequantizer,
    PlainTensors,
    StoredTensors,
    UnreadableError,
)
from laconic.model.checkpoints.quantized.torchao import TORCHAO
from laconic.model.checkpoints.weights import Weights, read_tensors
from laconic.model.stock import MODEL_ERRORS

DEQUANTIZERS: Mapping[str, Dequantizer] = {
    "awq": AWQ,
    "bitsandbytes": BITS_AND_BYTES,
    "compressed-tensors": COMPRESSED,
    "fp8": FLOAT8,
    "gptq": GPTQ,
    "mxfp4": MXFP4,
    "torchao": TORCHAO,
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
    if reader.package is not None and reader.needs_package(quantization):
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
    numbers: PlainTensors = {
        name: torch.empty(tensor.shape, device="meta") if isinstance(tensor, CodedMatrix) else tensor
        for name, tensor in plain.items()
    }
    oriented = _orient(build_outline(config, source), numbers, stored)
    check_shapes({name: tuple(tensor.shape) for name, tensor in oriented.items()}, config, source, external_names)


def load_dequantized(
    config: PreTrainedConfig,
    weights: Weights,
    quantization: Mapping[str, Any],
    source: str,
    external_names: Collection[str] = (),
    *,
    packed: bool = False,
) -> PreTrainedModel:
    """Load a quantized model in float32.

    Args:
        config: the configuration without its `quantization_config`.
        weights: the files.
        quantization: the `quantization_config`, which `check_quantization` accepted.
        source: the model, as errors name it.
        external_names: names of tensors that come from elsewhere and may be missing.
        packed: keep the codes of linear layers, where a format of laconic holds the same numbers.

    Raises:
        UserError: the codes cannot be read, or the tensors do not match the configuration.
    """
    method = quant_method(quantization)
    outline = build_outline(config, source)
    try:
        with report_load_errors(source):
            files = [read_tensors(file, weights.are_safe) for file in weights.files]
            tensors = {name: tensor for file in files for name, tensor in file.items()}
            stored = StoredTensors(tensors, _metadata(weights))
            read = DEQUANTIZERS[str(method)].dequantize(stored, quantization)
    except UnreadableError as error:
        raise _unreadable_error(source, method, error) from error
    kept = keep_codes(outline, read if packed else {})
    rest = kept.rest if packed else read
    plain = _orient(outline, rest, stored)
    if any(tensor is not tensors.get(name) for name, tensor in rest.items()):
        warnings.warn(
            f"The model '{source}' is quantized by '{method}': its codes are turned into numbers, and saved as such.",
            CheckpointNotice,
            stacklevel=2,
        )
    model = load_checked(
        type(outline),
        kept.describe_in(config),
        source,
        external_names=external_names,
        pretrained_model_name_or_path=None,
        state_dict={**plain, **kept.tensors},
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


def _orient(outline: PreTrainedModel, plain: PlainTensors, stored: StoredTensors) -> dict[str, Tensor]:
    """The matrices as numbers, in the orientation of the class: a Conv1D of GPT-2 holds (in, out), not (out, in)."""
    conv1d = {f"{name}.weight" for name, module in outline.named_modules() if isinstance(module, Conv1D)}
    conv1d |= {name.removeprefix(f"{outline.base_model_prefix}.") for name in conv1d}
    oriented = {}
    for name, tensor in plain.items():
        dense = tensor.dense() if isinstance(tensor, CodedMatrix) else tensor
        is_turned = name in conv1d and dense is not stored.tensors.get(name)
        oriented[name] = dense.T.contiguous() if is_turned else dense
    return oriented


def _unreadable_error(source: str, method: str | None, error: UnreadableError) -> UserError:
    return UserError(
        f"The model '{source}' is quantized by '{method}' in a way that laconic does not read: {error}; "
        "use the model that it was made from."
    )
