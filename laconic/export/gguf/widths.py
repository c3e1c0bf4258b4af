"""The widths of the blocks of a model, which need no weights, and the architecture that takes them."""

from collections.abc import Iterator, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.shape import Shape, measure
from laconic.export.gguf.tensors import FileNames
from laconic.formats import Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model import LanguageModel


def find_shape(lm: LanguageModel, architecture: Architecture) -> Shape:
    """The widths of the blocks.

    Args:
        lm: the model, with or without weights.
        architecture: its entry in the table.

    Raises:
        UserError: a block has no attention or no feed-forward.
    """
    try:
        return measure(_layer_shapes(lm, architecture), lm.model.config, architecture)
    except KeyError as error:
        raise UserError(
            f"A block of the model has no tensor {error}, as its attention or feed-forward was removed; a GGUF file "
            "needs both; export it to onnx or openvino."
        ) from error


def fit(architecture: Architecture, shape: Shape) -> Architecture:
    """The architecture that takes these widths.

    Args:
        architecture: the entry of the model in the table.
        shape: the widths of its blocks.

    Raises:
        UserError: llama.cpp takes them in no architecture that computes the model.
    """
    if shape.is_uniform and (shape.is_square or not architecture.square):
        return architecture
    if architecture.narrowed is None:
        reason = "heads that together are as wide as the model" if shape.is_uniform else "the same widths in all blocks"
        raise UserError(
            f"llama.cpp takes {architecture.name} with {reason}, and this model was narrowed otherwise; narrow its "
            "feed-forwards to one width (narrow:channels=…), or export it to onnx or openvino."
        )
    return architecture.narrowed


def _layer_shapes(lm: LanguageModel, architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """The shapes (out, in) of all matrices for which llama.cpp has a tensor, by its name; of experts, that of one."""
    names = FileNames(architecture, lm.model.config)
    found = ((names.find(f"{path}.weight"), shape) for path, shape in _shapes(lm))
    return {name: shape for name, shape in found if name is not None}


def _shapes(lm: LanguageModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, module in lm.model.named_modules():
        if isinstance(module, Format):
            yield path, module.shape
        elif isinstance(module, Conv1D):
            yield path, tuple(module.weight.shape[::-1])
        elif isinstance(module, nn.Linear):
            yield path, tuple(module.weight.shape)
        elif is_experts(module):
            yield from ((f"{path}.{name}", stack.shape) for name, stack in find_expert_stacks(module).items())
