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
from laconic.model.enumeration import find_stacks, full_path, is_below
from laconic.model.loans import Loans
from laconic.model.loans_checkpoint import CheckpointReader
from laconic.model.loans_origins import PackedLayer, like, packed_layers, substitute, tensors_below
from laconic.model.site import has_module, matrix_shape
from laconic.model.usage import trace_usage

MATRICES = (nn.Linear, Conv1D, nn.Embedding, Format)


def build_streamed(config: PreTrainedConfig, weights: Weights, source: str, loans: Loans) -> PreTrainedModel:
    """Build a model whose large tensors are read when they are needed.

    Args:
        config: its configuration.
        weights: its safetensors files.
        source: the model, as errors name it.
        loans: its loans, still without tensors.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: weights do not match the configuration, cannot be read, or are not finite.
    """
    # A pooler that is not in the file is initialized at random, equally at every loading.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stored, quantizer = _build_stored(config, source)
        reader = CheckpointReader(stored, weights, source)
        model = copy.deepcopy(stored)
        if quantizer is not None:
            quantizer.postprocess_model(model)
            model.hf_quantizer = quantizer
        _initialize(model, reader.missing)
    real = [tensor for _, _, tensor in tensors_below(model) if not tensor.is_meta]
    substitute(model, {id(tensor): like(tensor.to(loans.stored.device), tensor) for tensor in real})
    loans.fill(model, reader, reader.names, _lent_paths(model))
    if model.can_generate() and (weights.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(weights.folder))
    return model.eval()


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


def _initialize(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Give buffers that are not stored, and parameters that a file lacks, their values, as `from_pretrained` does."""
    layers = packed_layers(model)
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
        if isinstance(module, MATRICES) and not any(is_below(name, path) for path in (*inside, *found)):
            found.append(name)
    return found


def _is_inside(name: str, layers: Collection[PackedLayer]) -> bool:
    return any(name.startswith(f"{layer.path}.") for layer in layers)
