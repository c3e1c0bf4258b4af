"""The layers of a model: the blocks that the hidden states pass, stack by stack.

A layer is a block, except where blocks are shared (ALBERT): there it is one call of a group of blocks.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError
from laconic.model.anatomy import Depth, Stack
from laconic.model.lm import LanguageModel
from laconic.model.stock import text_config


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of one stack.

    Args:
        name: `encoder` or `decoder`; `blocks` in a model with one stack.
        stack: the entry of the stack.
        depth: the part of the entry that depends on the number of blocks.
        list: path of the `ModuleList` of the blocks or of the groups of blocks.
        paths: path of the module that each layer calls, in forward order.
    """

    name: str
    stack: Stack
    depth: Depth
    list: str
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shared(self) -> bool:
        """Whether several layers may call the same block."""
        return self.depth.group_count is not None


def find_layers(lm: LanguageModel) -> list[Layers]:
    """Find the layers of every stack of `lm`, in forward order.

    Raises:
        UserError: the key of the configuration for the number of blocks is not known.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> lm = LanguageModel.of(GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=16)))
        >>> [(layers.name, len(layers)) for layers in find_layers(lm)]
        [('blocks', 3)]
    """
    stacks = list(lm.stacks())
    return [
        _layers(lm, stack, blocks[0][0], stack.blocks.partition(".")[0] if len(stacks) > 1 else "blocks")
        for stack, blocks in stacks
    ]


def get_layers(lm: LanguageModel, name: str) -> Layers:
    """The layers of the stack called `name`."""
    return next(layers for layers in find_layers(lm) if layers.name == name)


def _layers(lm: LanguageModel, stack: Stack, first_block: str, name: str) -> Layers:
    depth, config = stack.depth, text_config(lm.model.config)
    if depth is None:
        raise _unknown_error(lm)
    levels = 3 if depth.group_count is not None else 1
    path = first_block.rsplit(".", levels)[0]
    blocks = [f"{path}.{child}" for child, _ in lm.model.get_submodule(path).named_children()]
    if depth.group_count is not None:
        count = getattr(config, depth.count)
        blocks = [blocks[group] for group in group_schedule(count, len(blocks))]
    if getattr(config, depth.count, None) != len(blocks):
        raise _unknown_error(lm)
    return Layers(name=name, stack=stack, depth=depth, list=path, paths=tuple(blocks))


def group_schedule(count: int, groups: int) -> list[int]:
    """The group that each of `count` layers calls. All groups are called equally often, as in ALBERT.

    Example:
        >>> group_schedule(4, 2)
        [0, 0, 1, 1]
    """
    return [int(layer / (count / groups)) for layer in range(count)]


def configs_around(model: PreTrainedModel, path: str) -> list[PreTrainedConfig]:
    """The distinct configurations of the model and of its parts around a module, outermost first.

    Of a model of text and images, the configuration of its text part is meant.

    Args:
        model: the model.
        path: path of the module, such as `Layers.list`.
    """
    parts = [
        text_config(part.config)
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel) and (not name or path.startswith(f"{name}."))
    ]
    return list({id(config): config for config in parts}.values())


def check_droppable(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> None:
    """Check that layers can be dropped so that the others make a model of the same class.

    Args:
        lm: the model.
        layers: one of its stacks.
        indices: the layers to drop, numbered from 0.

    Raises:
        UserError: there is no such layer, no layer would be left, the first must stay, or groups would be called
            unequally often.
    """
    problem = _drop_problem(lm, layers, indices)
    if problem is not None:
        raise UserError(problem)


def can_drop(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> bool:
    """Whether `check_droppable` accepts these layers."""
    return not indices or _drop_problem(lm, layers, indices) is None


def _drop_problem(lm: LanguageModel, layers: Layers, indices: Collection[int]) -> str | None:
    model_type, stack = lm.model.config.model_type, "the model" if layers.name == "blocks" else f"the {layers.name}"
    if (missing := next((index for index in indices if not 0 <= index < len(layers)), None)) is not None:
        return f"There is no block {missing} in {stack}: it has {len(layers)}, numbered from 0."
    if len(set(indices)) == len(layers):
        return f"All {len(layers)} blocks of {stack} would be dropped; at least one must stay."
    if 0 in indices and needs_first_block(lm, layers):
        return f"Block 0 of '{model_type}' must stay: no other can take the first place in its class."
    if layers.shared and remaining_groups(layers, indices) is None:
        return (
            f"The groups of '{model_type}' must be called equally often, so dropping the layers "
            f"{', '.join(map(str, sorted(indices)))} leaves no model of its class; drop whole groups, or the same "
            "number from each."
        )
    return None


def check_depths(lm: LanguageModel, dropped: Mapping[str, int]) -> None:
    """Check that the numbers of blocks allow generation.

    Args:
        lm: the model.
        dropped: the number of blocks that each stack loses, by its name.

    Raises:
        UserError: the decoder would have more blocks than the encoder, whose number transformers uses for the cache.
    """
    if not fits_cache(lm, dropped):
        raise UserError(
            f"The decoder of '{lm.model.config.model_type}' would have more blocks than the encoder, and transformers "
            "makes its key-value cache for as many blocks as the encoder has; drop at least as many blocks of "
            "the decoder."
        )


def fits_cache(lm: LanguageModel, dropped: Mapping[str, int]) -> bool:
    """Whether `check_depths` accepts these numbers: the key-value cache has room for all blocks of the decoder."""
    stacks = {layers.name: layers for layers in find_layers(lm)}
    pairs = [(layers, stacks[layers.depth.cache_stack]) for layers in stacks.values() if layers.depth.cache_stack]
    return all(
        # A decoder that had more blocks from the start is accepted.
        len(decoder) > len(encoder)
        or len(decoder) - dropped.get(decoder.name, 0) <= len(encoder) - dropped.get(encoder.name, 0)
        for decoder, encoder in pairs
    )


def needs_first_block(lm: LanguageModel, layers: Layers) -> bool:
    """Whether the first block of `layers` must stay."""
    path = layers.depth.first_only
    if not path:
        return path is not None
    parent, _, name = path.rpartition(".")
    # A module that this configuration leaves out is None, and then no child.
    return name in dict(lm.model.base_model.get_submodule(parent).named_children())


def remaining_groups(layers: Layers, indices: Collection[int]) -> list[int] | None:
    """The groups of shared layers that remain; None if they would be called unequally often."""
    groups = [int(path.rpartition(".")[2]) for index, path in enumerate(layers.paths) if index not in indices]
    kept = list(dict.fromkeys(groups))
    return kept if [kept[group] for group in group_schedule(len(groups), len(kept))] == groups else None


def _unknown_error(lm: LanguageModel) -> UserError:
    return UserError(
        f"The blocks of '{lm.model.config.model_type}' cannot be dropped: laconic does not know the key of its "
        "configuration for their number; compress its matrices, or give it an entry in laconic.model.anatomy."
    )


def consecutive_ranges(indices: Iterable[int]) -> list[range]:
    """The longest runs of consecutive numbers in `indices`, in order.

    Example:
        >>> consecutive_ranges([5, 1, 2])
        [range(1, 3), range(5, 6)]
    """
    runs: list[range] = []
    for index in sorted(set(indices)):
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs
