"""The numbers of heads and channels of each block, as the tensors of a file have them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig

from laconic.export.gguf.architectures import Architecture, FileBlocks
from laconic.export.gguf.encoding import Encoded


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


def measure(tensors: Mapping[str, Encoded], config: PreTrainedConfig, architecture: Architecture) -> Shape:
    """The widths of the blocks; a decoder that reads an encoder has two attentions in each block.

    Args:
        tensors: the tensors by their names in the file.
        config: the configuration of the model.
        architecture: the architecture to write.

    Raises:
        KeyError: a block has no attention or no feed-forward.
    """
    size, heads, groups, channels = head_size(config), [], [], []
    for stack, block in _blocks(config, architecture):
        for attention in (f"{block}.{name}" for name in stack.attentions):
            queries = tensors[f"{attention}_{stack.output}.weight"].columns
            heads.append(queries // size)
            if f"{attention}_k.weight" in tensors:
                groups.append(tensors[f"{attention}_k.weight"].shape[0] // size)
            else:
                groups.append((tensors[f"{attention}_qkv.weight"].shape[0] - queries) // 2 // size)
        experts = f"{block}.ffn_down_exps.weight"
        channels.append(tensors[experts if experts in tensors else f"{block}.ffn_down.weight"].columns)
    return Shape(tuple(heads), tuple(groups), tuple(channels), size, config.hidden_size)


def _blocks(config: PreTrainedConfig, architecture: Architecture) -> Iterator[tuple[FileBlocks, str]]:
    """The stack and the name in the file of every block."""
    for stack in architecture.stacks:
        for block in range(getattr(config, stack.count)):
            yield stack, f"{stack.prefix}.{block}"
