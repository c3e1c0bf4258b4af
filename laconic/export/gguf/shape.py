"""The numbers of heads and channels of each block, as the matrices of a model have them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig

from laconic.export.gguf.architectures import Architecture, FileBlocks


@dataclass(frozen=True)
class Shape:
    """The widths of each block.

    Args:
        heads: heads of queries.
        groups: heads of keys and values.
        channels: inner channels of feed-forwards, or of each expert.
        head_size: the width of a head.
        width: the width of the model.
    """

    heads: tuple[int, ...]
    groups: tuple[int, ...]
    channels: tuple[int, ...]
    head_size: int
    width: int

    @property
    def is_uniform(self) -> bool:
        """Whether all blocks have the same widths."""
        return all(len(set(counts)) == 1 for counts in (self.heads, self.groups, self.channels))

    @property
    def is_square(self) -> bool:
        """Whether the heads of each block together are as wide as the model."""
        return all(heads * self.head_size == self.width for heads in self.heads)


def head_size(config: PreTrainedConfig) -> int:
    """The width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def measure(shapes: Mapping[str, tuple[int, ...]], config: PreTrainedConfig, architecture: Architecture) -> Shape:
    """The widths of the blocks; a decoder that reads an encoder has two attentions in each block.

    Args:
        shapes: the shapes of the matrices, by their names in the file.
        config: the configuration of the model.
        architecture: the architecture to write.

    Raises:
        KeyError: a block has no attention or no feed-forward.
    """
    size, heads, groups, channels = head_size(config), [], [], []
    for stack, block in _blocks(config, architecture):
        for attention in (f"{block}.{name}" for name in stack.attentions):
            queries = shapes[f"{attention}_{stack.output}.weight"][-1]
            heads.append(queries // size)
            if f"{attention}_k.weight" in shapes:
                groups.append(shapes[f"{attention}_k.weight"][0] // size)
            else:
                groups.append((shapes[f"{attention}_qkv.weight"][0] - queries) // 2 // size)
        experts = f"{block}.ffn_down_exps.weight"
        channels.append(shapes[experts if experts in shapes else f"{block}.ffn_down.weight"][-1])
    return Shape(tuple(heads), tuple(groups), tuple(channels), size, config.hidden_size)


def _blocks(config: PreTrainedConfig, architecture: Architecture) -> Iterator[tuple[FileBlocks, str]]:
    """The stack and the name in the file of every block."""
    for stack in architecture.stacks:
        for block in range(getattr(config, stack.count_key)):
            yield stack, f"{stack.prefix}.{block}"
