"""Models that another library quantized, loaded as plain weights.

`quantization_config` names the library. The layouts of fine-grained FP8, MXFP4, GPTQ and AWQ are read here, those of
compressed-tensors, bitsandbytes and torchao by the library itself. Quantization of activations is ignored.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import CheckpointNotice, UserError, reason_of
from laconic.model.checkpoints.checkpoint import require_package
from laconic.model.checkpoints.fit import build_outline, check_shapes
from laconic.model.checkpoints.quantized.libraries import BITS_AND_BYTES, COMPRESSED, TORCHAO
from laconic.model.checkpoints.quantized.readers import AWQ, FLOAT8, GPTQ, MXFP4, Reader, StoredTensors, UnreadableError
from laconic.model.checkpoints.report import check_report
from laconic.model.checkpoints.weights import Weights, read_tensors
from laconic.model.stock import MODEL_ERRORS

READERS: Mapping[str, Reader] = {
    "awq": AWQ,
    "bitsandbytes": BITS_AND_BYTES,
    "compressed-tensors": COMPRESSED,
    "fp8": FLOAT8,
    "gptq": GPTQ,
    "mxfp4": MXFP4,
    "torchao": TORCHAO,
}
"""By what `quant_method` says."""


def quant_method(said: Mapping[str, Any]) -> str | None:
    """The library that a `quantization_config` names; old ones of bitsandbytes do not name it."""
    method = said.get("quant_method")
    if method is None and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        return "bitsandbytes"
    return method


def check_quantization(said: Mapping[str, Any], source: str) -> None:
    """Raise UserError where a model with this `quantization_config` cannot be read."""
    method = quant_method(said)
    reader = READERS.get(str(method))
    if reader is None:
        raise UserError(
            f"The model '{source}' is quantized by '{method or 'an unnamed library'}', which laconic does not read (it "
            f"reads {', '.join(READERS)}); use the model that it was made from."
        )
    if reader.package is not None:
        require_package(reader.package, f"The model '{source}' is quantized by '{method}', so it", least=reader.least)
    try:
        reader.check(said)
    except UnreadableError as error:
        raise _unreadable(source, method, error) from error


def check_quantized_tensors(
    config: PreTrainedConfig, weights: Weights, said: Mapping[str, Any], source: str, given: Collection[str] = ()
) -> None:
    """Check names, dtypes and shapes of quantized tensors; no weight is read.

    Args:
        config: the configuration without its `quantization_config`.
        weights: the files.
        said: the `quantization_config`.
        source: the model, as errors name it.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: as `load_dequantized`, as far as headers show it.
    """
    try:
        with torch.device("meta"):
            held = StoredTensors(weights.empty_tensors(), weights.metadata())
            numbers = READERS[str(quant_method(said))].dequantize(held, said)
    except UnreadableError as error:
        raise _unreadable(source, quant_method(said), error) from error
    except MODEL_ERRORS:
        # Some libraries need the numbers; `load_dequantized` runs the same code on them and tells the error.
        return
    if len(numbers) == len(held.tensors) and all(one is held.tensors.get(name) for name, one in numbers.items()):
        raise UserError(
            f"The config.json of '{source}' says that it is quantized by '{quant_method(said)}', and its files hold no "
            "codes; take the config.json that was saved with the weights."
        )
    shapes = {name: tuple(one.shape) for name, one in _as_in(build_outline(config, source), numbers, held).items()}
    check_shapes(shapes, config, source, given)


def load_dequantized(
    config: PreTrainedConfig, weights: Weights, said: Mapping[str, Any], source: str, given: Collection[str] = ()
) -> PreTrainedModel:
    """Load a quantized model in float32.

    Args:
        config: the configuration without its `quantization_config`.
        weights: the files.
        said: the `quantization_config`, which `check_quantization` accepted.
        source: the model, as errors name it.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: the codes cannot be read, or the tensors do not match the configuration.
    """
    method = quant_method(said)
    warnings.warn(
        f"The model '{source}' is quantized by '{method}': its codes are turned into numbers, and saved as such.",
        CheckpointNotice,
        stacklevel=2,
    )
    outline: Any = build_outline(config, source)
    try:
        held = _read_tensors(weights)
        numbers = READERS[str(method)].dequantize(held, said)
        model, report = type(outline).from_pretrained(
            None,
            config=config,
            state_dict=_as_in(outline, numbers, held),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except UnreadableError as error:
        raise _unreadable(source, method, error) from error
    except MODEL_ERRORS as error:
        raise UserError(
            f"The weights of '{source}' cannot be loaded: {reason_of(error)}; use files that were saved together."
        ) from error
    check_report(model, report, source, given=given)
    if model.can_generate() and (weights.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(weights.folder))
    return model


def _read_tensors(weights: Weights) -> StoredTensors:
    tensors = {name: tensor for file in weights.files for name, tensor in read_tensors(file, weights.are_safe).items()}
    return StoredTensors(tensors, weights.metadata())


def _as_in(outline: PreTrainedModel, numbers: dict[str, Tensor], held: StoredTensors) -> dict[str, Tensor]:
    """The matrices as the class holds them: those of GPT-2 lie the other way round than a linear's, as codes do not."""
    turned = {f"{name}.weight" for name, module in outline.named_modules() if isinstance(module, Conv1D)}
    turned |= {name.removeprefix(f"{outline.base_model_prefix}.") for name in turned}
    return {
        name: tensor.T.contiguous() if name in turned and tensor is not held.tensors.get(name) else tensor
        for name, tensor in numbers.items()
    }


def _unreadable(source: str, method: str | None, error: UnreadableError) -> UserError:
    return UserError(
        f"The model '{source}' is quantized by '{method}' in a way that laconic does not read: {error}; "
        "use the model that it was made from."
    )
