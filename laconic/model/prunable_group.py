"""Attentions and feed-forwards as sums of parts: heads and channels that can be removed one by one.

The output projection of an attention sums over heads, and that of a feed-forward over channels. A part consists of rows
of the input projections and columns of the output projection, and can be removed without the others
(`laconic.model.width`). Heads that share keys and values are one part. If all heads of an attention share one key, each
of them is a part, and the key and its value belong to all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from laconic.errors import UserError
from laconic.model.anatomy import Attention, FeedForward, Heads
from laconic.model.enumeration import full_path
from laconic.model.fused_rows import count_key_heads
from laconic.model.lm import LanguageModel
from laconic.model.prunable_layers import PLAIN, input_projections, prunable_modules
from laconic.model.prunable_parts import InputProjection, SizeAttribute
from laconic.model.site import Group, Site, has_module


@dataclass(frozen=True, kw_only=True)
class PrunableGroup:
    """One attention or feed-forward as a sum of parts.

    Args:
        name: path of the attention module, or of a feed-forward's output projection.
        group: attention or feed-forward.
        count: the number of parts: heads, groups of heads that share keys and values, or channels.
        readers: the input projections, with rows of each part.
        writer: the output projection, with columns of each part.
        counters: the attributes that count parts.
        vectors: paths of other parameters with numbers of each part, besides the biases of the readers.
        bias: path of the embedding with a column for each part, or None.
        config: the keys of the configuration that count parts, each with the number that one part adds to it; empty if
            the class cannot build a model with fewer parts.
        pinned: keys of the configuration that must be written with their present values when `config` changes.
        coupling: a key that is equal for all groups that must lose the same parts.
        heads: the number of heads in one part; 1 for channels.
        is_split: whether the parts are single heads that share one key.
        is_uniform: whether all groups must have equally many parts, because the class reads their number from the
            configuration when it runs.
    """

    name: str
    group: Group
    count: int
    readers: tuple[InputProjection, ...]
    writer: Site
    counters: tuple[SizeAttribute, ...] = ()
    vectors: tuple[str, ...] = ()
    bias: str | None = None
    config: Mapping[str, int] = field(default_factory=dict)
    pinned: Mapping[str, int] = field(default_factory=dict)
    coupling: str
    heads: int = 1
    is_split: bool = False
    is_uniform: bool = False

    @property
    def size(self) -> int:
        """Columns of the writer for each part."""
        return self.writer.shape[1] // self.count

    @property
    def sites(self) -> tuple[Site, ...]:
        """All its sites: the readers, then the writer."""
        return (*(reader.site for reader in self.readers), self.writer)

    @property
    def parameters(self) -> int:
        """Number of parameters of one part, in all matrices."""
        read = sum(sum(reader.each) * reader.site.shape[1] for reader in self.readers)
        return read + self.size * self.writer.shape[0]


CoupledGroups = tuple[PrunableGroup, ...]
"""Groups that must lose the same parts: in most models a single one."""


def prunable_groups(
    lm: LanguageModel, groups: Sequence[Group] = (Group.ATTENTION, Group.FFN), *, split_keys: bool = True
) -> list[PrunableGroup]:
    """Find every attention and feed-forward inside the blocks whose parts can be removed, in forward order.

    Args:
        lm: the model.
        groups: ATTENTION for attentions, FFN for feed-forwards.
        split_keys: whether heads are parts of their own if all of them share one key.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> lm = LanguageModel.of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)))
        >>> [(group.name, group.count) for group in prunable_groups(lm)]
        [('transformer.h.0.attn', 2), ('transformer.h.0.mlp.c_proj', 32)]
    """
    return [group for group in _all_groups(lm, split_keys) if group.group in groups]


def couple_groups(groups: Iterable[PrunableGroup]) -> list[CoupledGroups]:
    """Collect the groups that must lose the same parts."""
    by_key: dict[str, list[PrunableGroup]] = {}
    for group in groups:
        by_key.setdefault(group.coupling, []).append(group)
    return [tuple(members) for members in by_key.values()]


@dataclass(frozen=True)
class _BlockAt:
    """A block, its path, the number of its stack, and the sites of the model by name."""

    lm: LanguageModel
    stack: int
    path: str
    block: nn.Module
    is_first: bool
    sites: Mapping[str, Site]

    def has(self, path: str) -> bool:
        """Whether the block has a module at a path."""
        return has_module(self.block, path)

    def site(self, path: str) -> Site:
        """The site at a path from the block."""
        return self.sites[f"{self.path}.{path}"]


@dataclass(frozen=True)
class _HeadCounts:
    """The numbers of heads and of key heads in an attention, and the size of one head."""

    heads: int
    keys: int
    size: int
    splits_key: bool

    @property
    def is_split(self) -> bool:
        """Whether each head is a part, though all of them share one key."""
        return self.splits_key and self.keys == 1

    @property
    def parts(self) -> int:
        """The number of parts."""
        return self.heads if self.is_split else self.keys

    @property
    def each(self) -> int:
        """The number of heads in one part."""
        return self.heads // self.parts


def _all_groups(lm: LanguageModel, split_keys: bool) -> Iterator[PrunableGroup]:
    sites = {site.name: site for site in lm.sites(("blocks",)) if isinstance(site.module, PLAIN)}
    for number, (stack, blocks) in enumerate(lm.stacks()):
        for path, block in blocks:
            at = _BlockAt(lm, number, path, block, path == blocks[0][0], sites)
            for group in (Group.ATTENTION, Group.FFN):
                for layer in prunable_modules(stack, block, group):
                    paths = (*input_projections(layer), layer.output)
                    if not all(f"{path}.{part}" in sites for part in paths if has_module(block, part)):
                        continue
                    yield (
                        _feed_forward(at, layer)
                        if isinstance(layer, FeedForward)
                        else _attention(at, layer, split_keys)
                    )


def _attention(at: _BlockAt, layer: Attention, split_keys: bool) -> PrunableGroup:
    heads, name = layer.heads, f"{at.path}.{layer.module}"
    assert heads is not None
    module = at.block.get_submodule(layer.module)
    counts = _count_heads(at, layer, getattr(module, heads.size), split_keys)
    declared = {heads.config_count: counts.each, heads.config_kv_count: 0 if counts.is_split else 1}
    vectors = (*heads.head_vectors, *_norms(module, heads, counts.parts))
    return PrunableGroup(
        name=name,
        group=Group.ATTENTION,
        count=counts.parts,
        readers=tuple(_readers(at, layer, counts)),
        writer=at.site(layer.output),
        counters=tuple(_counters(module, heads, counts)),
        vectors=tuple(f"{name}.{vector}" for vector in vectors),
        bias=_position_bias(at, layer, heads),
        config={key: number for key, number in declared.items() if key and number} if heads.config_count else {},
        pinned={heads.config_size: counts.size} if heads.config_count and heads.config_size else {},
        coupling=f"{at.stack}.{layer.module}" if heads.are_coupled else name,
        heads=counts.each,
        is_split=counts.is_split,
        is_uniform=heads.counts_in_config,
    )


def _count_heads(at: _BlockAt, layer: Attention, size: int, split_keys: bool) -> _HeadCounts:
    heads = at.site(layer.output).shape[1] // size
    if layer.fused is not None:
        keys = count_key_heads(at.site(layer.fused).shape[0], heads, size)
    else:
        keys = heads if layer.key is None else at.site(layer.key).shape[0] // size
    if not keys or heads % keys:
        raise UserError(
            f"The {heads} heads of '{at.path}.{layer.module}' cannot share {keys} heads of keys evenly, so the model "
            "cannot run; correct the numbers of heads in its config.json."
        )
    return _HeadCounts(heads, keys, size, split_keys)


def _readers(at: _BlockAt, layer: Attention, counts: _HeadCounts) -> Iterator[InputProjection]:
    width = counts.each * counts.size
    for part in input_projections(layer):
        if not at.has(part):
            continue
        site = at.site(part)
        if part == layer.fused:
            keys = () if counts.is_split else (counts.size, counts.size)
            yield InputProjection(site, (width, *keys) if layer.fused_layout == "stacked" else (width + sum(keys),))
        else:
            belongs_to_all = counts.is_split and part != layer.query
            yield InputProjection(site, () if belongs_to_all else (site.shape[0] // counts.parts,))


def _counters(module: nn.Module, heads: Heads, counts: _HeadCounts) -> Iterator[SizeAttribute]:
    counters = [(heads.count, counts.each), (heads.width, counts.each * counts.size)]
    # Without a head that shares the only key, there is still one key, and fewer heads share it.
    counters += [(heads.group_size, 1)] if counts.is_split else [(heads.kv_count, 1)]
    if heads.counts_in_config:
        counters.append((f"config.{heads.config_count}", counts.each))
    return (SizeAttribute(module, attribute, number) for attribute, number in counters if attribute)


def _norms(module: nn.Module, heads: Heads, parts: int) -> Iterator[str]:
    """The parameters of norms with rows of each part; the norm of a key that all heads share has none."""
    parameters = dict(module.named_parameters())
    return (name for name in heads.head_norms if name in parameters and len(parameters[name]) % parts == 0)


def _position_bias(at: _BlockAt, layer: Attention, heads: Heads) -> str | None:
    """Path of the position bias that loses its columns with this attention; None if it has none."""
    if heads.model_position_bias is not None:
        # All attentions lose the same heads, and the columns go with those of the first.
        return full_path(at.lm.model, heads.model_position_bias) if at.is_first else None
    own = f"{layer.module}.{heads.position_bias}"
    return f"{at.path}.{own}" if heads.position_bias is not None and at.has(own) else None


def _feed_forward(at: _BlockAt, layer: FeedForward) -> PrunableGroup:
    writer = at.site(layer.output)
    holder, _, attribute = (layer.width or "").rpartition(".")
    each = (1, 1) if layer.fused_gate else (1,)
    return PrunableGroup(
        name=writer.name,
        group=Group.FFN,
        count=writer.shape[1],
        readers=tuple(InputProjection(at.site(part), each) for part in layer.inner),
        writer=writer,
        counters=(SizeAttribute(at.block.get_submodule(holder), attribute, 1),) if attribute else (),
        config={layer.config_width: 1} if layer.config_width else {},
        coupling=writer.name,
    )
