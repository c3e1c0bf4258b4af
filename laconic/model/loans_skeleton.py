"""Build a streamed model: its large tensors are placeholders on the meta device, and all others have their values.

Blocks, word embeddings and heads are lent, and so is every matrix that a run over text does not use, as in a vision
tower. What remains is small and is read at once: norms, tables of positions, small linears. Buffers that are computed
and not stored, and parameters that a file may lack, get the values that `from_pretrained` gives them.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from laconic.formats import Format
from laconic.model.anatomy import Anatomy
from laconic.model.anatomy.infer import find_anatomy
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.weights import GENERATION_CONFIG, Weights
from laconic.model.enumeration import find_stacks, full_path
from laconic.model.loans import PACKED, Loans, Origin, PackedLayer, TensorReader, like, substitute, tensors_below
from laconic.model.loans_checkpoint import CheckpointReader
from laconic.model.site import has_module, matrix_shape
from laconic.model.usage import trace_usage

MATRICES = (nn.Linear, Conv1D, nn.Embedding, Format)


def build_streamed(
    config: PreTrainedConfig, weights: Weights, source: str, device: torch.device
) -> tuple[PreTrainedModel, Loans]:
    """Build a model whose large tensors are read when they are needed.

    Args:
        config: its configuration.
        weights: its safetensors files.
        source: the model, as errors name it.
        device: the device that tensors on loan, and those that are read now, are on.

    Returns:
        The model in evaluation mode, and its loans.

    Raises:
        UserError: weights do not match the configuration, cannot be read, or are not finite.
    """
    # A pooler that is not in the file is initialized at random, equally at every loading.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stored, quantizer = _build_stored(config, source)
        reader = CheckpointReader(stored, weights, source)
        layers = packed_layers(stored)
        model = copy.deepcopy(stored)
        if quantizer is not None:
            quantizer.postprocess_model(model)
            model.hf_quantizer = quantizer
        _initialize(model, reader.missing, layers)
    substitute(model, {id(tensor): like(tensor.to(device), tensor) for tensor in _real_tensors(model)})
    loans = Loans(source, device)
    origins = find_origins(model, reader, reader.names, layers)
    lent = {id(tensor) for path in _lent_paths(model) for _, _, tensor in tensors_below(model.get_submodule(path))}
    loans.register(origin for origin in origins if id(origin.placeholder) in lent)
    substitute(model, loans.fetch([origin for origin in origins if id(origin.placeholder) not in lent]))
    if model.can_generate() and (weights.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(weights.folder))
    return model.eval(), loans


def _build_stored(config: PreTrainedConfig, source: str) -> tuple[Any, Any]:
    """The model on the meta device in float32, with packed layers as they are stored; and its quantizer, if any."""
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    quantization = config.to_dict().get("quantization_config")
    stored = build_outline(config, source)
    if quantization is None:
        return stored, None
    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
    quantizer.preprocess_model(stored, dtype=torch.float32)
    return stored, quantizer


def _initialize(model: PreTrainedModel, missing: Collection[str], layers: Collection[PackedLayer]) -> None:
    """Give buffers that are not stored, and parameters that a file lacks, their values, as `from_pretrained` does."""
    names = missing - model.all_tied_weights_keys.keys()
    lacking = [model.get_parameter_or_buffer(name) for name in names]
    computed = [buffer for name, buffer in model.named_non_persistent_buffers() if not _is_inside(name, layers)]
    substitute(model, {id(tensor): _on_cpu(tensor) for tensor in (*lacking, *computed)})
    for module in model.modules():
        # The flag by which transformers skips a module that it has initialized, here on the meta device.
        vars(module).pop("_is_hf_initialized", None)
    # Tensors on the meta device take no random numbers.
    model.initialize_weights()


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor like this one in memory, without values; a parameter gets gradients, as `from_pretrained` makes it."""
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, empty.is_floating_point()) if isinstance(tensor, nn.Parameter) else empty


def packed_layers(stored: nn.Module) -> list[PackedLayer]:
    """The packed layers of a model in the form in which it is stored."""
    return [PackedLayer(path, module) for path, module in stored.named_modules() if isinstance(module, PACKED)]


def find_origins(
    model: PreTrainedModel, reader: TensorReader, names: Collection[str], layers: Collection[PackedLayer]
) -> list[Origin]:
    """The origins of the tensors of a model on the meta device that a reader has.

    Args:
        model: the model, with its layers unpacked.
        reader: the files.
        names: the names of the tensors in them.
        layers: the packed layers among these tensors.
    """
    plain = [name for name in names if not _is_inside(name, layers)]
    origins = [Origin(model.get_parameter_or_buffer(name), reader, name) for name in plain]
    for layer in layers:
        module = model.get_submodule(layer.path)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            origins.append(Origin(tensor, reader, name, layer))
    return origins


def embedding_paths(model: PreTrainedModel, anatomy: Anatomy) -> list[str]:
    """The paths of the word embeddings."""
    return [path for table in anatomy.embeddings if (path := full_path(model, table.path))]


def head_paths(model: PreTrainedModel, anatomy: Anatomy) -> list[str]:
    """The paths of the matrices outside the blocks whose outputs are as many as the words of an embedding."""
    tables = embedding_paths(model, anatomy)
    words = {matrix_shape(model.get_submodule(path))[1] for path in tables}
    outside = [path for path in _outer_matrices(model, anatomy) if path not in tables]
    return [path for path in outside if matrix_shape(model.get_submodule(path))[0] in words]


def _lent_paths(model: PreTrainedModel) -> list[str]:
    anatomy = find_anatomy(model)
    blocks = [path for _, found in find_stacks(model, anatomy) for path, _ in found]
    usage = trace_usage(model, globally=anatomy.global_attention)
    unused = [] if usage is None else [path for path in usage.uncalled if has_module(model, path)]
    return [*blocks, *embedding_paths(model, anatomy), *head_paths(model, anatomy), *unused]


def _outer_matrices(model: PreTrainedModel, anatomy: Anatomy) -> list[str]:
    """The linears, embeddings and formats outside the blocks, without those inside formats."""
    inside = [path for _, blocks in find_stacks(model, anatomy) for path, _ in blocks]
    found: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MATRICES) and not any(f"{name}.".startswith(f"{path}.") for path in (*inside, *found)):
            found.append(name)
    return found


def _real_tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, _, tensor in tensors_below(model) if not tensor.is_meta]


def _is_inside(name: str, layers: Collection[PackedLayer]) -> bool:
    return any(name.startswith(f"{layer.path}.") for layer in layers)
