"""Blocks taken out of a model for real: fewer modules, and a configuration that its class makes the same model of.

What depends on the index of a block is updated: the index under which an attention caches its keys, per-layer lists of
the configuration (`laconic.model.depth_config`), T5's table of relative positions, and GPT-2's score scale by layer
index. A block can go only if its class rebuilds the remaining model from the new configuration.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.model.anatomy import BiasTable
from laconic.model.depth_config import COUNTS, PLACES, SCALING, SLIDES, is_copied_list, scales_by_index, shorten_config
from laconic.model.layers import Layers, check_droppable, configs_around, remaining_groups
from laconic.model.lm import LanguageModel
from laconic.model.width import resize_linear


def drop_blocks(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> None:
    """Drop layers from a model in place; what is left is a model of the same class.

    Args:
        lm: the model.
        layers: one of its stacks.
        indices: the layers to drop, numbered from 0.

    Raises:
        UserError: there is no such layer, none would be left, or the class could not build the rest.
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
    before = dict(vars(lm.model.config))
    for config in configs_around(lm, layers):
        shorten_config(config, layers.depth, len(layers), kept)
    _quote_again(lm, before)
    _tell_windows(lm)
    if layers.depth.stack_count is not None:
        setattr(configs_around(lm, layers)[-1], layers.depth.stack_count, len(kept))


def check_rescalable(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> None:
    """Check that the queries of blocks whose score scale changes can be multiplied to make up for it.

    Raises:
        UserError: such a query projection is compressed already.
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
            _rescale(lm, f"{layers.list}.{old}", old + 1, new + 1)
    for index in reversed(range(len(layers))):
        if index not in kept:
            del holder[index]
    for new, block in enumerate(holder):
        _renumber(block, new)
    for path, module in lm.model.named_modules():
        if not path or layers.list.startswith(f"{path}."):
            _recount(module, len(layers), len(kept))


def _drop_groups(lm: LanguageModel, layers: Layers, holder: nn.ModuleList, indices: Collection[int]) -> None:
    groups = remaining_groups(layers, indices)
    assert groups is not None and layers.depth.group_count is not None
    for group in reversed(range(len(holder))):
        if group not in groups:
            del holder[group]
    for config in configs_around(lm, layers):
        setattr(config, layers.depth.group_count, len(groups))


def _renumber(block: nn.Module, place: int) -> None:
    for module in block.modules():
        for name in PLACES:
            # Where nothing is cached by it, it may be None.
            if isinstance(vars(module).get(name), int):
                setattr(module, name, place)


def _recount(holder: nn.Module, before: int, after: int) -> None:
    for name in COUNTS:
        if vars(holder).get(name) == before:
            setattr(holder, name, after)


def _quote_again(lm: LanguageModel, before: Mapping[str, object]) -> None:
    after = vars(lm.model.config)
    for module in lm.model.modules():
        for name, value in vars(module).items():
            if is_copied_list(name, value, before, after):
                setattr(module, name, after[name])


def _tell_windows(lm: LanguageModel) -> None:
    for module in lm.model.modules():
        if SLIDES in vars(module):
            setattr(module, SLIDES, "sliding_attention" in lm.model.config.layer_types)


def _move_table(table: BiasTable, first: nn.Module, new_first: nn.Module) -> None:
    if first is not new_first:
        source, target = first.get_submodule(table.module), new_first.get_submodule(table.module)
        setattr(target, table.table, getattr(source, table.table))
        setattr(target, table.flag, True)


@torch.no_grad()
def _rescale(lm: LanguageModel, block: str, old: int, new: int) -> None:
    """Multiply the queries of a block by the factor that its new index removes from the scores."""
    attention = lm.model.get_submodule(f"{block}.attn")
    if old == new:
        return
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
