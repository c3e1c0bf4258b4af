"""Write a checkpoint of transformers whose linear layers are codes of another library, and read it again.

The weights that are read must equal those that were written, bit for bit. The outputs are then compared with those of
the written model, both with decoded weights: no layer is decoded more than once.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.calibrate.passes import evaluating
from laconic.errors import CheckpointNotice, UserError
from laconic.export.agreement import TOLERANCE, Agreement, References, compare, model_outputs
from laconic.export.coded_experts import CodedExperts
from laconic.export.coded_linear import CodedLinear
from laconic.formats.expert_layer import ExpertLayer
from laconic.model import LanguageModel
from laconic.model.enumeration import is_below
from laconic.model.loading import load
from laconic.progress import Track
from laconic.runtime.portable import DENSE, ExportedLayers
from laconic.runtime.signature import Signature
from laconic.store.densify import densify, detach_quantizer, enable_biases
from laconic.store.expert_layers import store_experts_one_by_one
from laconic.store.folder import to_dtype
from laconic.store.structure import outermost_formats

ROUNDINGS = 4
"""The tolerance of outputs in units of the machine epsilon of the dtype, if that is larger."""


def replace_layers(
    stored: PreTrainedModel,
    made: Mapping[str, tuple[str, Callable[[], CodedLinear]]],
    made_experts: Mapping[str, tuple[str, Callable[[ExpertLayer], CodedExperts]]] | None = None,
) -> dict[str, ExportedLayers]:
    """Replace layers by those that hold the tensors of the file, and write out the others.

    Args:
        stored: a model in its stored dtype; it is changed in place.
        made: for each layer that is stored as codes, its label in reports and what makes it, by path.
        made_experts: the same for each layer of experts; None for no experts.

    Returns:
        A summary of the compressed layers by label.

    Raises:
        UserError: a layer has a bias that the class cannot have.
    """
    formats = {paths[0]: layer for layer, paths in outermost_formats(stored).items()}
    plain = enable_biases(stored, [path for path in made if formats[path].bias is not None])
    layers: dict[str, ExportedLayers] = {}
    for path, layer in formats.items():
        if path in made:
            if layer.bias is not None and plain.get_submodule(path).bias is None:
                raise UserError(
                    f"The layer '{path}' has a bias that {type(stored).__name__} does not have there; compress without "
                    "correcting biases."
                )
            label, make = made[path]
            replacement = make().eval()
            stored.set_submodule(path, replacement)
            nbytes = replacement.nbytes
        else:
            label, nbytes = DENSE, layer.shape[0] * layer.shape[1] * stored.dtype.itemsize
        _count(layers, label, ExportedLayers(1, layer.nbytes(), nbytes))
    for path, (label, make_experts) in (made_experts or {}).items():
        layer = stored.get_submodule(path)
        assert isinstance(layer, ExpertLayer)
        experts = make_experts(layer)
        stored.set_submodule(path, experts)
        written = experts.matrices.values()
        nbytes = sum(matrix.nbytes for matrix in written)
        _count(layers, label, ExportedLayers(len(written), experts.stored_bytes, nbytes))
    if made_experts:
        store_experts_one_by_one(stored)
    densify(stored)
    detach_quantizer(stored)
    return layers


def _count(layers: dict[str, ExportedLayers], label: str, more: ExportedLayers) -> None:
    total = layers.get(label, ExportedLayers(0, 0, 0))
    layers[label] = ExportedLayers(
        total.count + more.count, total.stored_bytes + more.stored_bytes, total.bytes + more.bytes
    )


def coded_layers(model: nn.Module) -> dict[str, CodedLinear]:
    """The layers of a model that hold the tensors of the file, by path; those of experts are left out."""
    experts = coded_experts(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CodedLinear) and not any(is_below(name, path) for path in experts)
    }


def coded_experts(model: nn.Module) -> dict[str, CodedExperts]:
    """The layers of experts that hold the tensors of the file, by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CodedExperts)}


def coded_matrices(model: nn.Module) -> dict[str, CodedLinear]:
    """Every matrix of a model that is stored as codes, by its path in the file."""
    found = coded_layers(model)
    for experts in coded_experts(model).values():
        found |= experts.matrices
    return found


def write_folder(stored: PreTrainedModel, folder: Path, config: Mapping[str, Any]) -> None:
    """Write the weights and the configuration.

    Args:
        stored: the model with the tensors of the file.
        folder: an existing folder.
        config: the `quantization_config`.
    """
    # Type checkers do not know the attribute.
    vars(stored.config)["quantization_config"] = dict(config)
    stored.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        # safetensors files are readable by the owner only; use the mode of the other files.
        shutil.copymode(folder / "config.json", weights)
    del vars(stored.config)["quantization_config"]


def read_folder(stored: PreTrainedModel, folder: Path, target: str) -> PreTrainedModel:
    """The model as laconic reads it from the folder, with decoded weights in the dtype of `stored`.

    Args:
        stored: the model that was written.
        folder: the folder.
        target: the name of the target, for messages.

    Raises:
        UserError: a weight is read otherwise than it was written.
    """
    with warnings.catch_warnings():
        # That a quantized checkpoint becomes dense is what is asked for.
        warnings.simplefilter("ignore", CheckpointNotice)
        loaded = to_dtype(load(str(folder)).model, stored.dtype).eval()
    coded, experts, found = coded_layers(stored), coded_experts(stored), loaded.state_dict()
    inner = tuple(f"{name}." for name in (*coded, *experts))
    expected = {name: tensor for name, tensor in stored.state_dict().items() if not name.startswith(inner)}
    for path, layer in experts.items():
        for name in layer.shapes:
            check_equal(f"{path}.{name}", found[f"{path}.{name}"], layer.dense(name), target)
    for name, layer in coded.items():
        check_equal(f"{name}.weight", found[f"{name}.weight"], layer.dense(), target)
        if layer.bias is not None:
            expected[f"{name}.bias"] = layer.bias
    for name, tensor in expected.items():
        check_equal(name, found[name], tensor, target)
    return loaded


@contextmanager
def open_tensors(folder: Path) -> Iterator[Callable[[str], Tensor]]:
    """A context with a function that reads a tensor of the safetensors files in a folder, by its name.

    Args:
        folder: the folder.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, framework="pt")) for file in sorted(folder.glob("*.safetensors"))]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it has no iterator)
        yield lambda name: places[name].get_tensor(name)


def check_equal(name: str, found: Tensor, expected: Tensor, target: str) -> None:
    """Check that a tensor is read as it was written.

    Raises:
        UserError: it is not.
    """
    if not torch.equal(found, expected):
        raise UserError(f"The tensor '{name}' is read otherwise from the files for {target}; nothing was written.")


def compare_outputs(
    lm: LanguageModel, stored: PreTrainedModel, loaded: PreTrainedModel, target: str, track: Track
) -> Agreement:
    """Compare the outputs of the read model with those of the written one. Neither rounds inputs.

    Args:
        lm: the exported model.
        stored: the model with the tensors of the file.
        loaded: the result of `read_folder`.
        target: the name of the target, for messages.
        track: reports progress.

    Raises:
        UserError: the outputs differ.
    """
    decoded = replace(lm, model=stored, original=None).shallow_copy()
    # Equal bit for bit to what the layers decode, so no second copy is needed.
    for path in coded_experts(decoded.model):
        decoded.model.set_submodule(path, loaded.get_submodule(path))
    for path, layer in coded_layers(decoded.model).items():
        rows, columns = layer.shape
        plain = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(loaded.get_submodule(path).get_parameter("weight").detach(), requires_grad=False)
        plain.register_parameter("bias", layer.bias)
        decoded.model.set_submodule(path, plain)
    served = replace(decoded, model=loaded)
    signature = Signature.of(lm)
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(lm.dtype).eps)
    with evaluating(served):
        return compare(
            References(decoded, tolerance=tolerance),
            lambda batch: model_outputs(served, batch, signature),
            signature,
            target,
            track,
        )
