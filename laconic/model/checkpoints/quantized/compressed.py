"""The reader of compressed-tensors, the format of llm-compressor and vLLM.

Two layouts of integers are read here, by the tensors that a module has:

- `pack-quantized`: `weight_packed` holds the codes of a row in words of 32 bits, the first in the lowest bits, as one
  stream; `weight_zero_point` holds zero points, packed along the rows of the matrix. Both are stored plus 2^(bits − 1).
- `int-quantized` and `float-quantized`: `weight` holds int8 or float8 values, `weight_scale` one scale for the matrix,
  for each row, or for each group of a row.

`weight_scale` holds s of ŵ = s (c − z), and `weight_g_idx` the group of each column. Every other layout is read by the
package compressed-tensors.
"""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.errors import quote
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix, unpack_rows
from laconic.model.checkpoints.quantized.readers import Dequantizer, PlainTensors, StoredTensors, UnreadableError

WORD = 32
PACKED, INTEGERS, FLOATS, DENSE, MIXED = (
    "pack-quantized", "int-quantized", "float-quantized", "dense", "mixed-precision"
)  # fmt: skip
OWN_LAYOUTS = {PACKED, INTEGERS, FLOATS, "naive-quantized", DENSE}
"""The layouts that are read without the package."""
WEIGHT_TRANSFORMS = {"weight_input", "weight_output"}
"""The places of a transform that are fused into the weights."""
_PARTS = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_OF_INPUTS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
"""Tensors of quantized activations, which are not read."""


def _check(config: Mapping[str, Any]) -> None:
    transforms, sparsity = config.get("transform_config"), config.get("sparsity_config")
    if transforms and _transforms_activations(transforms):
        raise UnreadableError(f"its transform_config is {quote(transforms)}")
    if isinstance(sparsity, dict) and sparsity and sparsity.get("format") != DENSE:
        raise UnreadableError(f"its sparsity_config is {quote(sparsity)}")


def _transforms_activations(transforms: Any) -> bool:
    """Whether activations are transformed when the model runs. Transforms of weights are in the stored weights."""
    try:
        places = {entry["location"] for scheme in transforms["config_groups"].values() for entry in scheme["apply"]}
    except (AttributeError, KeyError, TypeError):
        return True
    return not places <= WEIGHT_TRANSFORMS


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = config.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def _needs_package(config: Mapping[str, Any]) -> bool:
    """Whether a layout, or a block of several rows with one scale, is read only by the package."""
    layouts = {group.get("format") or config.get("format") for group in _groups(config)} or {config.get("format")}
    strategies = {(group.get("weights") or {}).get("strategy") for group in _groups(config)}
    return not layouts <= OWN_LAYOUTS or "block" in strategies


def _read(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    if _needs_package(config):
        return read_by_package(stored, config)
    # The inputs of all layers are rounded alike, or of none: int8 codes of layers whose inputs are not are read dense.
    rounds = [_rounds_inputs(group) for group in _groups(config) if (group.get("format") or config["format"]) != PACKED]
    rounds_inputs = bool(rounds) and all(rounds)
    bits = {int((group.get("weights") or {}).get("num_bits", 0)) for group in _groups(config)}
    plain: PlainTensors = {}
    for module, parts in _modules(stored):
        name = f"{module}.weight" if module else "weight"
        if "weight_packed" in parts:
            plain[name] = _packed(module, parts, bits)
        elif "weight_scale" in parts and "weight" in parts:
            plain[name] = _unpacked(module, parts, rounds_inputs)
        else:
            plain |= {f"{module}.{part}" if module else part: tensor for part, tensor in parts.items()}
    return plain


def _rounds_inputs(group: Mapping[str, Any]) -> bool:
    """Whether a group rounds inputs to 8 bits, with a scale for each token."""
    inputs = group.get("input_activations")
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return isinstance(inputs, dict) and wanted.items() <= inputs.items()


def _modules(stored: StoredTensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of each module by their last name, without those of quantized activations."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.tensors.items():
        module, _, last = name.rpartition(".")
        modules.setdefault(module, {})[last] = tensor
    for module, parts in modules.items():
        is_quantized = "weight_scale" in parts or "weight_packed" in parts
        own = {part: tensor for part, tensor in parts.items() if not is_quantized or part in _PARTS}
        yield module, own
        rest = {part: tensor for part, tensor in parts.items() if part not in own and part not in _OF_INPUTS}
        if rest:
            yield module, rest


def _packed(module: str, parts: Mapping[str, Tensor], known_bits: Collection[int]) -> CodedMatrix:
    words, scale, shape = parts["weight_packed"], parts.get("weight_scale"), parts.get("weight_shape")
    if scale is None or shape is None or words.dtype != torch.int32 or words.dim() != 2 or scale.dim() != 2:
        raise UnreadableError(f"'{module}' holds {', '.join(parts)} in another form than {PACKED} does")
    rows, columns = (int(side) for side in shape.tolist())
    # The schemes have patterns of names as their targets; which one a layer has shows in its size.
    fitting = [bits for bits in known_bits if 2 <= bits <= 8 and -(-columns * bits // WORD) == words.shape[1]]
    if len(words) != rows or len(fitting) != 1:
        raise UnreadableError(
            f"'{module}' has {tuple(words.shape)} words for a matrix of {rows} × {columns}, and the schemes have "
            f"{', '.join(map(str, sorted(known_bits)))} bits"
        )
    bits = fitting[0]
    _check_scales(module, (rows, columns), scale)
    zero = parts.get("weight_zero_point")
    if zero is not None:
        # Packed along the rows.
        zero = unpack_rows(zero.T.contiguous().view(torch.uint8), bits)[:, :rows].T.contiguous()
    return CodedMatrix(
        packed=words.contiguous().view(torch.uint8),
        shape=(rows, columns),
        bits=bits,
        scale=scale.expand(rows, -1),
        zero=zero,
        group_index=parts.get("weight_g_idx"),
    )


def _unpacked(module: str, parts: Mapping[str, Tensor], rounds_inputs: bool) -> Tensor | CodedMatrix:
    weight, scale, zero = parts["weight"], parts["weight_scale"], parts.get("weight_zero_point")
    if weight.dim() != 2 or weight.dtype.itemsize != 1:
        raise UnreadableError(f"'{module}' has a weight of the type {weight.dtype} with scales")
    rows, columns = weight.shape
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.view(len(scale), -1)
    _check_scales(module, (rows, columns), scale)
    if weight.dtype == torch.int8 and zero is None:
        scale = scale.expand(rows, -1)
        return CodedMatrix(
            packed=weight.view(torch.uint8) ^ 128,
            shape=(rows, columns),
            bits=8,
            scale=scale,
            group_index=parts.get("weight_g_idx"),
            rounds_inputs=rounds_inputs and scale.shape[1] == 1,
        )
    index = parts.get("weight_g_idx")
    index = torch.arange(columns) // (columns // scale.shape[1]) if index is None else index.long()
    values = weight.float()
    if zero is not None:
        zero = zero.float().reshape(1, 1) if zero.numel() == 1 else zero.float().view(len(zero), -1)
        values = values - zero[:, index]
    return values * scale.float()[:, index]


def _check_scales(module: str, shape: tuple[int, int], scale: Tensor) -> None:
    """Raise UnreadableError unless scales (rows or 1, groups) fit a matrix of a shape (rows, columns)."""
    if len(scale) not in (1, shape[0]) or scale.shape[1] == 0 or shape[1] % scale.shape[1]:
        raise UnreadableError(
            f"'{module}' has a matrix of {shape[0]} × {shape[1]} and scales of the shape {tuple(scale.shape)}"
        )


def read_by_package(stored: StoredTensors, config: Mapping[str, Any]) -> PlainTensors:
    """Dequantize each layer by the package, with the scheme of its own group.

    transformers 5.23 uses the first group's scheme for all.

    Args:
        stored: the tensors.
        config: the `quantization_config`.

    Raises:
        UnreadableError: the package cannot read them.
    """
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


COMPRESSED = Dequantizer(
    dequantize=_read, check=_check, package="compressed-tensors", min_version="0.20", needs_package=_needs_package
)
