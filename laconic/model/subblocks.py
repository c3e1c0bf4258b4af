"""The sub-blocks of a block (attention, cross-attention, feed-forward), and how one of them is dropped.

The projections that read the block become zero, and the one that writes gives nothing, or a constant bias. Masks,
position biases and the key-value cache of the sub-block stay, and work on zeros.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Format
from laconic.model.anatomy import Stack
from laconic.model.layers import Layers
from laconic.model.lm import LanguageModel
from laconic.model.prunable_group import has_module, input_projections

ATTENTION, CROSS_ATTENTION, FEED_FORWARD = PARTS = ("attention", "cross-attention", "ffn")


@dataclass(frozen=True)
class SubBlock:
    """One sub-block of a layer; paths are from the whole model.

    Args:
        part: one of `PARTS`.
        inner: the projections that read the block, or positions.
        output: the projection that writes to the residual stream.
        norm: the norm between `output` and the residual stream, where there is one.
        is_dropped: whether an earlier step dropped it.
    """

    part: str
    inner: tuple[str, ...]
    output: str
    norm: str | None
    is_dropped: bool

    @property
    def writer(self) -> str:
        """Path of the module whose output is added to the residual stream."""
        return self.norm or self.output


def find_subblocks(lm: LanguageModel, layers: Layers, index: int) -> list[SubBlock]:
    """Find the sub-blocks of one layer, in forward order.

    Args:
        lm: the model.
        layers: one of its stacks.
        index: the layer.

    Raises:
        UserError: several layers share the block, or its parts are not known.
    """
    model_type = lm.model.config.model_type
    if layers.shared:
        raise UserError(f"The layers of '{model_type}' share their block, so none of them can lose a part of it alone.")
    path = layers.paths[index]
    block = lm.model.get_submodule(path)
    norms = layers.depth.output_norms if all(has_module(block, norm) for norm in layers.depth.output_norms) else ()
    found = list(_paths(layers.stack, block))
    if not found:
        raise UserError(f"The parts of a block of '{model_type}' are not known; drop whole blocks.")
    return [
        SubBlock(
            part=part,
            inner=tuple(f"{path}.{name}" for name in inner),
            output=f"{path}.{output}",
            norm=f"{path}.{norms[number]}" if norms else None,
            is_dropped=isinstance(block.get_submodule(output), Constant),
        )
        for number, (part, inner, output) in enumerate(found)
    ]


def last_writer(lm: LanguageModel, layers: Layers, index: int) -> str:
    """Path of the module that adds to the residual stream last in a layer.

    Dropped sub-blocks count only where all are dropped: a linear map cannot make anything of their constant.
    """
    parts = find_subblocks(lm, layers, index)
    return next((part.writer for part in reversed(parts) if not part.is_dropped), parts[-1].writer)


@torch.no_grad()
def drop_subblock(lm: LanguageModel, subblock: SubBlock, bias: Tensor | None) -> None:
    """Drop a sub-block in place.

    Args:
        lm: the model.
        subblock: the sub-block.
        bias: what the residual stream gets instead, (d,); None for nothing.

    Raises:
        UserError: it is dropped already.
    """
    if subblock.is_dropped:
        raise UserError(f"The {subblock.part} that '{subblock.output}' belongs to is dropped already.")
    for path in subblock.inner:
        # Between the two of a feed-forward nothing need pass; heads are cut out of what an attention's give.
        _put(lm, path, None, width=0 if subblock.part == FEED_FORWARD else None)
    _put(lm, subblock.output, None if subblock.norm else bias)
    if subblock.norm is not None and bias is not None:
        _put(lm, subblock.norm, bias)


def _put(lm: LanguageModel, path: str, bias: Tensor | None, width: int | None = None) -> None:
    old = lm.model.get_submodule(path)
    if isinstance(old, (Format, nn.Linear, Conv1D)):
        out_features, in_features = _shape(old)
    else:
        assert bias is not None
        out_features = in_features = len(bias)
    # Codes are whole numbers, of which no bias is made.
    floating = (parameter for parameter in old.parameters() if parameter.is_floating_point())
    like = next(floating, old.get_buffer("weight") if isinstance(old, Format) else None)
    assert like is not None
    constant = Constant(out_features, in_features, False, width)
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    constant.set_bias(None if bias is None else bias.to(lm.dtype).to(like.dtype))
    constant.to(device=like.device, dtype=like.dtype).train(old.training).requires_grad_(like.requires_grad)
    lm.model.set_submodule(path, constant)


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Format):
        return module.shape
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def _paths(stack: Stack, block: nn.Module) -> Iterator[tuple[str, list[str], str]]:
    """(part, its inner projections, its output) of each that `block` has."""
    for part, attention in ((ATTENTION, stack.attention), (CROSS_ATTENTION, stack.cross_attention)):
        if attention is not None and has_module(block, attention.output):
            yield part, [path for path in input_projections(attention) if has_module(block, path)], attention.output
    for feed_forward in stack.feed_forward:
        if all(has_module(block, path) for path in (*feed_forward.inner, feed_forward.output)):
            yield FEED_FORWARD, list(feed_forward.inner), feed_forward.output
