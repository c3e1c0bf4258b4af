"""The target `compressed-tensors`: a checkpoint that vLLM serves, decoded again by its package before it is kept."""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from laconic.calibrate.passes import evaluating
from laconic.errors import CheckpointNotice, Notice, UserError, install
from laconic.export.agreement import TOLERANCE, References, compare, model_outputs
from laconic.export.compressed_tensors.layers import CompressedLinear
from laconic.export.compressed_tensors.schemes import Scheme, check_fused, quantization_config, scheme_of
from laconic.export.target import ExportedModel, Target, Written, card_opening, layers_table
from laconic.formats import (
    Constant,
    Dense,
    DenseExpertStack,
    DynamicInt8,
    ExpertStack,
    LowRank,
    PackedEmbedding,
    Quantized,
)
from laconic.model import LanguageModel, ModelTask
from laconic.model.loading import load
from laconic.model.stock import build_stock
from laconic.progress import Track
from laconic.runtime.portable import DENSE, ExportedLayers
from laconic.runtime.signature import Signature
from laconic.store.densify import densify, detach_quantizer, enable_biases
from laconic.store.folder import file_bytes, to_dtype
from laconic.store.shapes import changed_shapes
from laconic.store.structure import outermost_formats

NAME, PACKAGE = "compressed-tensors", "compressed_tensors"
ROUNDINGS = 4
"""The tolerance in units of the machine epsilon of the dtype, if that is larger."""
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The sizes of heads that vLLM's attention on a CPU computes; it fails at the first request with others."""
WRITTEN_OUT = (LowRank, Dense, Constant, PackedEmbedding)
"""Formats that are written as a dense matrix."""


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
        schemes = _schemes(lm.model, plain)
        for name in changed_shapes(lm.model, plain):
            raise UserError(
                f"The module '{name}' has another shape than the configuration gives it, and vLLM builds modules from "
                "the configuration alone: narrow all blocks alike, or export to onnx or openvino."
            )
        if not schemes:
            raise UserError(
                "The model has no quantized layer that compressed-tensors holds, so its dense form is a plain "
                "checkpoint, which vLLM reads: save laconic.materialize(model), or compress with rtn or gptq first."
            )
        check_fused(schemes, lm.model.named_modules())
        for sentence in _cpu_limits(lm, schemes):
            warnings.warn(sentence, Notice, stacklevel=2)

    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        stored = to_dtype(lm.model, lm.dtype)
        layers, schemes = _replace_layers(stored)
        densify(stored)
        detach_quantizer(stored)
        package = import_module(PACKAGE)
        config = quantization_config(schemes, stored.named_modules()) | {"version": package.__version__}
        # Type checkers do not know the attribute.
        vars(stored.config)["quantization_config"] = config
        stored.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            # safetensors files are readable by the owner only; use the mode of the other files.
            shutil.copymode(folder / "config.json", weights)
        del vars(stored.config)["quantization_config"]
        loaded = _read(stored, folder)
        exported = replace(lm, model=stored, original=None)
        served = replace(exported, model=loaded)
        signature = Signature.of(lm)
        tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(lm.dtype).eps)
        # The package decodes weights, and does not round inputs.
        unrounded = _without_rounding(exported)
        with evaluating(served):
            agreement = compare(
                References(unrounded, tolerance=tolerance),
                lambda batch: model_outputs(served, batch, signature),
                signature,
                NAME,
                track,
            )
        _check_matrices(stored, loaded)
        model = ExportedModel(
            file="config.json",
            runtime=NAME,
            library=f"compressed-tensors {package.__version__}",
            inputs=signature.inputs,
            outputs=signature.outputs,
            bytes=file_bytes(folder),
            layers=layers,
            agreement=agreement,
            scale_rounding=max(
                module.scale_rounding for module in stored.modules() if isinstance(module, CompressedLinear)
            ),
        )
        return Written(model, served)

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


def _cpu_limits(lm: LanguageModel, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Notices of features of the model that vLLM lacks on a CPU and may have on other devices."""
    config = lm.model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if lm.task is ModelTask.CAUSAL and size not in CPU_HEADS:
        yield (
            f"vLLM on a CPU has no attention with heads of {size} channels (it has {', '.join(map(str, CPU_HEADS))}); "
            "other devices and transformers may read the folder."
        )


def _schemes(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, Scheme]:
    """The scheme of each quantized layer that is stored as codes, by path.

    Raises:
        UserError: compressed-tensors or vLLM cannot hold a layer.
    """
    for path, module in model.named_modules():
        if isinstance(module, ExpertStack) and not isinstance(module, DenseExpertStack):
            raise UserError(
                f"The experts '{path}' are compressed, and this export writes no experts: leave them out with targets, "
                "or export to onnx or openvino."
            )
    schemes: dict[str, Scheme] = {}
    for layer, paths in outermost_formats(model).items():
        if isinstance(layer, WRITTEN_OUT) or _is_tied(plain, paths):
            continue
        if not isinstance(layer, (Quantized, DynamicInt8)):
            raise UserError(
                f"The layer '{paths[0]}' is stored as {layer.kind}, which compressed-tensors does not have: quantize "
                "it on an even grid of 4 bits, as rtn and gptq do, or export to onnx or openvino."
            )
        module = plain.get_submodule(paths[0])
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"The layer '{paths[0]}' is a {type(module).__name__} in {type(model).__name__}, and "
                "compressed-tensors quantizes only linear layers: export to onnx or openvino."
            )
        schemes[paths[0]] = scheme_of(paths[0], layer)
    return schemes


def _is_tied(plain: PreTrainedModel, paths: list[str]) -> bool:
    """Whether a matrix is at several places, such as a word embedding that is also the head. It is written out."""
    tied = plain.all_tied_weights_keys
    return len(paths) > 1 or any(f"{path}.weight" in (*tied.keys(), *tied.values()) for path in paths)


def _replace_layers(stored: PreTrainedModel) -> tuple[dict[str, ExportedLayers], dict[str, Scheme]]:
    """Replace quantized layers by those that compute with the tensors of the file.

    Returns:
        A summary of the layers by label, and their schemes by path.

    Raises:
        UserError: a layer has a bias that the class cannot have.
    """
    schemes = _schemes(stored, build_stock(stored))
    formats = {paths[0]: layer for layer, paths in outermost_formats(stored).items()}
    plain = enable_biases(stored, [path for path in schemes if formats[path].bias is not None])
    layers: dict[str, ExportedLayers] = {}
    for path, layer in formats.items():
        if path in schemes:
            if layer.bias is not None and plain.get_submodule(path).bias is None:
                raise UserError(
                    f"The layer '{path}' has a bias that {type(stored).__name__} does not have there; compress without "
                    "correcting biases."
                )
            assert isinstance(layer, (Quantized, DynamicInt8))
            replacement = CompressedLinear(layer, schemes[path], stored.dtype).eval()
            stored.set_submodule(path, replacement)
            label, nbytes = schemes[path].label, replacement.nbytes
        else:
            label, nbytes = DENSE, layer.shape[0] * layer.shape[1] * stored.dtype.itemsize
        total = layers.get(label, ExportedLayers(0, 0, 0))
        layers[label] = ExportedLayers(total.count + 1, total.stored_bytes + layer.nbytes(), total.bytes + nbytes)
    return layers, schemes


def _read(stored: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model that the package compressed-tensors decodes from the folder, in the dtype of `stored`."""
    with warnings.catch_warnings():
        # That a quantized checkpoint becomes dense is what is asked for.
        warnings.simplefilter("ignore", CheckpointNotice)
        return to_dtype(load(str(folder)).model, stored.dtype).eval()


def _without_rounding(lm: LanguageModel) -> LanguageModel:
    """A copy whose layers do not round their inputs."""
    twin = lm.shallow_copy()
    for module in twin.model.modules():
        if isinstance(module, CompressedLinear):
            module.rounds_inputs = False
    return twin


def _check_matrices(stored: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """Check that all weights are read as they were written, bit for bit.

    Raises:
        UserError: a weight differs.
    """
    compressed = {name: module for name, module in stored.named_modules() if isinstance(module, CompressedLinear)}
    found = loaded.state_dict()
    expected = {f"{name}.weight": module.dense for name, module in compressed.items()}
    inner = tuple(f"{name}." for name in compressed)
    for name, tensor in stored.state_dict().items():
        if not name.startswith(inner) or name.endswith(".bias"):
            expected[name] = lambda tensor=tensor: tensor
    for name, tensor in expected.items():
        if not torch.equal(found[name], tensor()):
            raise UserError(f"compressed-tensors reads another '{name}' from the exported files; nothing was written.")
