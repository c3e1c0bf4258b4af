"""Make a model with one block of each kind of a streamed model, for measuring what a block costs.

Blocks are of one kind if their modules have the same classes and shapes. The first block of a mixture may have a dense
feed-forward, and blocks of a hybrid may have no attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from laconic.model import LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.depth_config import DropChecker
from laconic.model.layers import find_layers
from laconic.model.loans_origins import tensors_below
from laconic.model.site import has_module


@dataclass(frozen=True)
class Representatives:
    """The blocks of a truncated model.

    Args:
        counts: for the path of each block, how many blocks of the whole model it stands for, itself included.
        left_out: the number of blocks that were dropped.
    """

    counts: Mapping[str, int]
    left_out: int


def truncate(lm: LanguageModel) -> Representatives:
    """Drop all blocks of a model but the first of each kind, in place. Blocks that layers share stay.

    Args:
        lm: a streamed model, whose weights are on disk, or a model without weights.

    Raises:
        UserError: the architecture is unknown, or its class has no configuration of such a model.
    """
    whole = sum(len(blocks) for _, blocks in lm.stacks())
    checker, counts = DropChecker(lm), dict[str, int]()
    for layers in find_layers(lm):
        kinds: dict[object, list[int]] = {}
        for index, path in enumerate(layers.paths):
            kinds.setdefault(_kind(lm.model.get_submodule(path)), []).append(index)
        kept = {indices[0]: len(indices) for indices in kinds.values()}
        if not layers.shared:
            dropped = [index for index in range(len(layers)) if index not in kept]
            checker.check(layers, dropped)
            drop_blocks(lm, layers, dropped)
            counts |= {f"{layers.list}.{new}": count for new, count in enumerate(kept.values())}
    if lm.loans is not None:
        lm.loans.paths = tuple(path for path in lm.loans.paths if has_module(lm.model, path))
    present = [path for _, blocks in lm.stacks() for path, _ in blocks]
    return Representatives({path: counts.get(path, 1) for path in present}, whole - len(present))


def _kind(block: nn.Module) -> object:
    """The classes and shapes of a block."""
    classes = tuple((name, type(module)) for name, module in block.named_modules())
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for _, name, tensor in tensors_below(block))
    return classes, shapes
