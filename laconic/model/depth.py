"""Drop blocks of a model, or sub-blocks (an attention or a feed-forward) of a block.

A dropped block is removed: the model has fewer modules, and its class builds the same model from the new configuration.
Everything that depends on the index of a block is updated: the index under which an attention caches its keys, lists of
the configuration (`laconic.model.depth_config`), T5's table of relative positions, and the score scale of GPT-2.

A dropped sub-block stays as a module that computes a constant: its input projections become zero, and its output
projection becomes a bias or nothing. Masks, position biases and the key-value cache of the sub-block stay and are
computed from zeros.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Format
from laconic.model.anatomy import BiasTable, Stack
from laconic.model.depth_config import (
    COUNTS,
    HAS_WINDOWS,
    LAYER_INDICES,
    SCALING,
    is_copied_list,
    scales_by_index,
    shorten_config,
)
from laconic.model.layers import Layers, check_droppable, configs_around, remaining_groups
from laconic.model.lm import LanguageModel
from laconic.model.prunable_layers import input_projections
from laconic.model.site import has_module, matrix_shape
from laconic.model.stock import text_config
from laconic.model.width import resize_linear


def drop_blocks(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> None:
    """Drop layers from a model in place; the rest is a model of the same class.

    Args:
        lm: the model.
        layers: one of its stacks.
        indices: the layers to drop, numbered from 0.

    Raises:
        UserError: there is no such layer, no layer would be left, or the class could not build the rest.
    """
    check_droppable(lm, layers, indices)
    check_rescalable(lm, layers, indices)
    kept = [index for index in range(len(layers)) if index not in indices]
    if len(kept) == len(layers):
        return
    holder = lm.model.get_submodule(layers.list)
    assert isinstance(holder, nn.ModuleList)
    if layers.shared:
        _drop_groups(lm, layers, holder, indices)
    else:
        _drop(lm, layers, holder, kept)
    text = text_config(lm.model.config)
    before = dict(vars(text))
    for config in configs_around(lm.model, layers.list):
        shorten_config(config, layers.depth, len(layers), kept)
    after = vars(text)
    for module in lm.model.modules():
        for name, value in vars(module).items():
            if is_copied_list(name, value, before, after):
                setattr(module, name, after[name])
        if HAS_WINDOWS in vars(module):
            setattr(module, HAS_WINDOWS, "sliding_attention" in text.layer_types)
    if layers.depth.stack_count is not None:
        setattr(configs_around(lm.model, layers.list)[-1], layers.depth.stack_count, len(kept))


def check_rescalable(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> None:
    """Check that the queries of all blocks whose score scale changes can be scaled to compensate for it.

    Args:
        lm: the model.
        layers: one of its stacks.
        indices: the layers to drop.

    Raises:
        UserError: such a query projection is already compressed.
    """
    if not scales_by_index(lm, layers):
        return
    kept = [index for index in range(len(layers)) if index not in indices]
    for new, old in enumerate(kept):
        path = f"{layers.list}.{old}.attn.c_attn"
        if new != old and not isinstance(lm.model.get_submodule(path), Conv1D):
            raise UserError(f"The matrix '{path}' is compressed already; blocks must be dropped before that.")


def _drop(lm: LanguageModel, layers: Layers, holder: nn.ModuleList, kept: Sequence[int]) -> None:
    if layers.depth.bias_table is not None:
        _move_table(layers.depth.bias_table, holder[0], holder[kept[0]])
    if scales_by_index(lm, layers):
        for new, old in enumerate(kept):
            path = f"{layers.list}.{old}"
            with lm.on_loan(path):
                _rescale(lm, path, old + 1, new + 1)
                lm.write_back(path)
    for index in sorted(set(range(len(layers))) - set(kept), reverse=True):
        del holder[index]
    for new, block in enumerate(holder):
        for module in block.modules():
            for name in LAYER_INDICES:
                # The index may be None in a module that caches nothing.
                if isinstance(vars(module).get(name), int):
                    setattr(module, name, new)
    for path, module in lm.model.named_modules():
        if not path or layers.list.startswith(f"{path}."):
            for name in COUNTS:
                if vars(module).get(name) == len(layers):
                    setattr(module, name, len(kept))


def _drop_groups(lm: LanguageModel, layers: Layers, holder: nn.ModuleList, indices: Collection[int]) -> None:
    groups = remaining_groups(layers, indices)
    assert groups is not None and layers.depth.group_count is not None
    for group in reversed(range(len(holder))):
        if group not in groups:
            del holder[group]
    for config in configs_around(lm.model, layers.list):
        setattr(config, layers.depth.group_count, len(groups))


def _move_table(table: BiasTable, first: nn.Module, new_first: nn.Module) -> None:
    if first is not new_first:
        source, target = first.get_submodule(table.module), new_first.get_submodule(table.module)
        setattr(target, table.table, getattr(source, table.table))
        setattr(target, table.flag, True)


@torch.no_grad()
def _rescale(lm: LanguageModel, block: str, old: int, new: int) -> None:
    """Multiply the queries of a block by a factor that keeps its scores the same under its new index."""
    if old == new:
        return
    attention = lm.model.get_submodule(f"{block}.attn")
    fused = attention.get_submodule("c_attn")
    assert isinstance(fused, Conv1D)
    queries = fused.nf // 3
    factor = torch.ones(fused.nf, dtype=torch.float64, device=fused.weight.device)
    factor[:queries] = new / old
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    weight = (fused.weight.T * factor[:, None]).to(lm.dtype).to(fused.weight.dtype)
    bias = (fused.bias * factor).to(lm.dtype).to(fused.bias.dtype)
    lm.model.set_submodule(f"{block}.attn.c_attn", resize_linear(fused, weight, bias))
    setattr(attention, SCALING, getattr(attention, SCALING) * old / new)


ATTENTION, CROSS_ATTENTION, FEED_FORWARD = PARTS = ("attention", "cross-attention", "ffn")


@dataclass(frozen=True)
class SubBlock:
    """One sub-block of a layer; paths are from the whole model.

    Args:
        part: one of `PARTS`.
        inner: the input projections, including those of positions.
        output: the output projection.
        norm: the norm between `output` and the residual stream, or None.
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
        UserError: several layers share the block, or its sub-blocks are not known.
    """
    model_type = lm.model.config.model_type
    if layers.shared:
        raise UserError(
            f"The layers of '{model_type}' share their block, so a part of it cannot be dropped from only one layer."
        )
    path = layers.paths[index]
    block = lm.model.get_submodule(path)
    norms = layers.depth.output_norms if all(has_module(block, norm) for norm in layers.depth.output_norms) else ()
    parts = list(_parts(layers.stack, block))
    if not parts:
        raise UserError(f"The parts of a block of '{model_type}' are not known; drop whole blocks.")
    return [
        SubBlock(
            part=part,
            inner=tuple(f"{path}.{name}" for name in inner),
            output=f"{path}.{output}",
            norm=f"{path}.{norms[number]}" if norms else None,
            is_dropped=isinstance(block.get_submodule(output), Constant),
        )
        for number, (part, inner, output) in enumerate(parts)
    ]


def last_writer(lm: LanguageModel, layers: Layers, index: int) -> str:
    """Path of the module that adds to the residual stream last in a layer.

    Dropped sub-blocks, which add a constant, count only if all are dropped.
    """
    subblocks = find_subblocks(lm, layers, index)
    return next((subblock.writer for subblock in reversed(subblocks) if not subblock.is_dropped), subblocks[-1].writer)


@torch.no_grad()
def drop_subblock(lm: LanguageModel, subblock: SubBlock, bias: Tensor | None) -> None:
    """Drop a sub-block in place.

    Args:
        lm: the model.
        subblock: the sub-block.
        bias: the constant that the residual stream gets instead, (d,); None for nothing.

    Raises:
        UserError: it is already dropped.
    """
    if subblock.is_dropped:
        raise UserError(f"The {subblock.part} that '{subblock.output}' belongs to is dropped already.")
    for path in subblock.inner:
        # Heads are cut out of the output of an attention's projections, so that their width must stay.
        _put_constant(lm, path, None, width=0 if subblock.part == FEED_FORWARD else None)
    _put_constant(lm, subblock.output, None if subblock.norm else bias)
    if subblock.norm is not None and bias is not None:
        _put_constant(lm, subblock.norm, bias)


def _put_constant(lm: LanguageModel, path: str, bias: Tensor | None, width: int | None = None) -> None:
    old = lm.model.get_submodule(path)
    if isinstance(old, (Format, nn.Linear, Conv1D)):
        out_features, in_features = matrix_shape(old)
    else:
        assert bias is not None
        out_features = in_features = len(bias)
    # A bias cannot have the dtype of codes, which are integers.
    floating = (parameter for parameter in old.parameters() if parameter.is_floating_point())
    like = next(floating, old.get_buffer("weight") if isinstance(old, Format) else None)
    assert like is not None
    constant = Constant(out_features, in_features, False, width)
    # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
    constant.set_bias(None if bias is None else bias.to(lm.dtype).to(like.dtype))
    constant.to(device=like.device, dtype=like.dtype).train(old.training).requires_grad_(like.requires_grad)
    lm.model.set_submodule(path, constant)


def _parts(stack: Stack, block: nn.Module) -> Iterator[tuple[str, list[str], str]]:
    """The name, the input projections and the output projection of each sub-block that `block` has."""
    for part, attention in ((ATTENTION, stack.attention), (CROSS_ATTENTION, stack.cross_attention)):
        if attention is not None and has_module(block, attention.output):
            yield part, [path for path in input_projections(attention) if has_module(block, path)], attention.output
    # Experts stay in their block, so that dropping the shared ones alone would not drop the feed-forward.
    for feed_forward in () if stack.has_experts(block) else stack.feed_forward:
        if all(has_module(block, path) for path in (*feed_forward.inner, feed_forward.output)):
            yield FEED_FORWARD, list(feed_forward.inner), feed_forward.output
