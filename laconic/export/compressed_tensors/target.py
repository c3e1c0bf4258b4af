"""The target `compressed-tensors`: a checkpoint that vLLM serves, decoded again by its package before it is kept."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import Notice, UserError, install
from laconic.export.code_checks import check_widths, quantized_layers
from laconic.export.coded_checkpoint import (
    check_equal,
    coded_matrices,
    compare_outputs,
    open_tensors,
    read_folder,
    replace_layers,
    write_folder,
)
from laconic.export.compressed_tensors.experts import experts_in_file, unread_experts
from laconic.export.compressed_tensors.layers import CompressedLinear
from laconic.export.compressed_tensors.schemes import MULTIPLE, Scheme, check_fused, quantization_config, scheme_of
from laconic.export.target import ExportedModel, Target, Written, card_opening, layers_table
from laconic.formats import DynamicInt8, Quantized
from laconic.model import LanguageModel, ModelTask
from laconic.model.checkpoints.quantized.compressed import read_by_package
from laconic.model.checkpoints.quantized.readers import StoredTensors
from laconic.model.stock import build_stock
from laconic.progress import Track
from laconic.runtime.engine.vllm_experts import processor_reason
from laconic.runtime.engine.vllm_heads import cpu_heads_reason
from laconic.runtime.signature import Signature
from laconic.store.folder import file_bytes, to_dtype

NAME, PACKAGE = "compressed-tensors", "compressed_tensors"


class CompressedTensorsTarget(Target):
    """compressed-tensors, as vLLM reads it."""

    name = NAME

    def check_installed(self, device: str) -> None:
        if missing := [library for library in (PACKAGE, "accelerate") if find_spec(library) is None]:
            raise UserError(
                f"An export to '{NAME}' is read again by {' and '.join(missing)}, not installed here: {install(NAME)}."
            )

    def check_model(self, lm: LanguageModel) -> None:
        plain = build_stock(lm.model)
        schemes, experts = _schemes(lm.model, plain), experts_in_file(lm.model, plain)
        check_widths(lm.model, plain)
        if not schemes and all(each.scheme is None for each in experts.values()):
            raise UserError(
                "The model has no quantized layer that compressed-tensors holds, so its dense form is a plain "
                "checkpoint, which vLLM reads: save laconic.materialize(model), or compress with rtn or gptq first."
            )
        check_fused(schemes, lm.model.named_modules())
        reasons = [cpu_heads_reason(lm.model.config.to_dict())] if lm.task is ModelTask.CAUSAL else []
        if any(each.scheme is not None for each in experts.values()):
            reasons.append(processor_reason())
        for reason in reasons:
            if reason is not None:
                warnings.warn(f"{reason}; other devices and transformers may read the folder.", Notice, stacklevel=2)
        if (unread := unread_experts(experts)) is not None:
            warnings.warn(unread, Notice, stacklevel=2)

    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        stored = to_dtype(lm.model, lm.dtype)
        plain = build_stock(stored)
        schemes, experts = _schemes(stored, plain), experts_in_file(stored, plain)
        layers = replace_layers(
            stored,
            {path: _maker(stored, path, scheme) for path, scheme in schemes.items()},
            {
                path: (each.scheme.label, partial(each.to_coded, dtype=stored.dtype))
                for path, each in experts.items()
                if each.scheme is not None
            },
        )
        package = import_module(PACKAGE)
        by_path = {each.path: each.scheme for each in experts.values()}
        config = quantization_config(schemes, stored.named_modules(), by_path) | {"version": package.__version__}
        write_folder(stored, folder, config)
        _check_package(stored, folder, config, track)
        loaded = read_folder(stored, folder, NAME)
        signature = Signature.of(lm)
        model = ExportedModel(
            file="config.json",
            runtime=NAME,
            library=f"compressed-tensors {package.__version__}",
            inputs=signature.inputs,
            outputs=signature.outputs,
            bytes=file_bytes(folder),
            layers=layers,
            agreement=compare_outputs(lm, stored, loaded, NAME, track),
            scale_rounding=max(matrix.scale_rounding for matrix in coded_matrices(stored).values()),
        )
        return Written(model, replace(lm, model=loaded, original=None))

    def card(self, lm: LanguageModel, model: ExportedModel) -> Iterator[str]:
        yield card_opening(lm, f"vLLM and transformers with {model.library}", model.bytes)
        yield ""
        agreement = model.agreement
        yield (
            f"Decoded again by the package and compared with torch on {agreement.rows} rows in {agreement.batches} "
            f"batches: outputs differ by at most {agreement.error:.1e} of the largest output."
        )
        if model.scale_rounding:
            yield f"Scales are rounded to {str(lm.dtype).removeprefix('torch.')}, in which vLLM computes: those of a "
            yield f"matrix change by at most {model.scale_rounding:.1e} of their norm."
        yield from layers_table(model, "quantized layers")
        yield ""
        if lm.task is ModelTask.CAUSAL:
            yield "```sh"
            yield "vllm serve path/to/this/folder"
            yield "```"


def _schemes(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, Scheme]:
    """The scheme of each quantized layer that is stored as codes, by path.

    Raises:
        UserError: compressed-tensors or vLLM cannot hold a layer.
    """
    schemes: dict[str, Scheme] = {}
    for path, layer in quantized_layers(model, plain):
        if layer.shape[0] < MULTIPLE:
            # Engines read such a matrix as it is, such as the gate of a shared expert. It is written out.
            continue
        if not isinstance(layer, (Quantized, DynamicInt8)):
            raise UserError(
                f"The layer '{path}' is stored as {layer.kind}, which compressed-tensors does not have: quantize "
                "it on an even grid of 4 bits, as rtn and gptq do, or export to onnx or openvino."
            )
        schemes[path] = scheme_of(path, layer)
    return schemes


def _maker(stored: PreTrainedModel, path: str, scheme: Scheme) -> tuple[str, Callable[[], CompressedLinear]]:
    """The label of a layer, and what makes the tensors of the file."""
    layer = stored.get_submodule(path)
    assert isinstance(layer, (Quantized, DynamicInt8))
    return scheme.label, lambda: CompressedLinear(layer, scheme, stored.dtype)


def _check_package(stored: PreTrainedModel, folder: Path, config: Mapping[str, Any], track: Track) -> None:
    """Check that the package decodes every layer of the files to the numbers that it stands for.

    Raises:
        UserError: a weight differs.
    """
    with open_tensors(folder) as read:
        for path, layer in track(list(coded_matrices(stored).items()), "decode"):
            tensors = {name: read(name) for name in (f"{path}.{buffer}" for buffer, _ in layer.named_buffers())}
            found = read_by_package(StoredTensors(tensors), config)[f"{path}.weight"]
            assert isinstance(found, Tensor)
            check_equal(f"{path}.weight", found.to(stored.dtype), layer.dense(), NAME)
