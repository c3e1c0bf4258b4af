"""Checks of a model that is written as codes of another library: the layers that become codes, and their shapes."""

from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.formats import (
    Constant,
    Dense,
    DenseExpertStack,
    ExpertLayer,
    Format,
    LowRank,
    PackedCodes,
    PackedEmbedding,
    Quantized,
)
from laconic.formats.expert_stacks import LowRankStack
from laconic.store.expert_layers import find_expert_layers
from laconic.store.shapes import changed_shapes
from laconic.store.structure import outermost_formats

WRITTEN_OUT = (LowRank, Dense, Constant, PackedEmbedding)
"""Formats that are written as a dense matrix."""
WRITTEN_OUT_STACKS = (LowRankStack, DenseExpertStack)
"""The same for matrices of experts."""


def quantized_layers(model: PreTrainedModel, plain: PreTrainedModel) -> Iterator[tuple[str, Format]]:
    """The layers that are to be stored as codes, by path: those that are neither written out nor tied.

    Args:
        model: the model, with or without weights.
        plain: its stock model.

    Raises:
        UserError: a layer is no `nn.Linear` in the stock model, or it has a mask or scales of columns, for which no
            such file has a place.
    """
    for layer, paths in outermost_formats(model).items():
        if isinstance(layer, WRITTEN_OUT) or _is_tied(plain, paths):
            continue
        if not isinstance(module := plain.get_submodule(paths[0]), nn.Linear):
            raise UserError(
                f"The layer '{paths[0]}' is a {type(module).__name__} in {type(model).__name__}, and this export "
                "writes only linear layers: export to onnx or openvino."
            )
        if isinstance(layer, PackedCodes):
            _check_codes(paths[0], layer)
        yield paths[0], layer


def quantized_experts(model: PreTrainedModel) -> Iterator[tuple[str, ExpertLayer]]:
    """The layers of experts that are to be stored as codes, by path: those that are not written out.

    Args:
        model: the model, with or without weights.

    Raises:
        UserError: only one of the two matrices of an expert is compressed; or an expert has a bias, a mask or scales of
            columns, for which no such file has a place.
    """
    for path, layer in find_expert_layers(model).items():
        stacks = layer.stacks()
        coded = {name: stack for name, stack in stacks.items() if not isinstance(stack, WRITTEN_OUT_STACKS)}
        if not coded:
            continue
        for name in stacks.keys() - coded.keys():
            raise UserError(
                f"The experts '{path}' are quantized in '{next(iter(coded))}' and not in '{name}', and engines read "
                "experts of one kind: compress both or neither."
            )
        for name, stack in coded.items():
            if stack.bias is not None:
                raise UserError(
                    f"The experts '{path}.{name}' have biases, and this export writes experts without: leave them out "
                    "with targets, or export to onnx or openvino."
                )
            if isinstance(matrix := stack.slice(0), PackedCodes):
                _check_codes(f"{path}.{name}", matrix)
        yield path, layer


def check_widths(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Check that every module has the shape that engines give it, which build modules from the configuration alone.

    Args:
        model: the model, with or without weights.
        plain: its stock model.

    Raises:
        UserError: a module has another shape.
    """
    for name in changed_shapes(model, plain):
        raise UserError(
            f"The module '{name}' has another shape than the configuration gives it, and engines build modules from "
            "the configuration alone: narrow all blocks alike, or export to onnx or openvino."
        )


def _check_codes(path: str, layer: PackedCodes) -> None:
    """Raise UserError if a layer has more than codes and scales of groups."""
    if layer.kept is not None:
        raise UserError(
            f"The layer '{path}' is pruned and quantized, and this export has no mask of pruned weights: quantize "
            "without pruning, or export to onnx or openvino."
        )
    if isinstance(layer, Quantized) and layer.column_scales is not None:
        raise UserError(
            f"The layer '{path}' has a scale for each column, which this export does not store: compress with a method "
            "that scales no columns, such as gptq."
        )


def _is_tied(plain: PreTrainedModel, paths: Sequence[str]) -> bool:
    """Whether a matrix is at several places, such as a word embedding that is also the head. It is written out."""
    tied = plain.all_tied_weights_keys
    return len(paths) > 1 or any(f"{path}.weight" in (*tied.keys(), *tied.values()) for path in paths)
