"""Attentions and feed-forwards as sums of parts: heads and channels that can be removed one by one.

The output projection of an attention sums over heads, that of a feed-forward over channels. A part is some rows of the
projections that read and some columns of the one that writes, and can go without the others (`laconic.model.width`).
Heads that share keys and values are one part.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Dense
from laconic.model.anatomy import Attention, FeedForward, Stack, entries
from laconic.model.lm import LanguageModel
from laconic.model.site import Group, Site

PLAIN = (nn.Linear, Conv1D, Dense)
"""What rows and columns can be taken out of."""


def check_prunable(lm: LanguageModel, group: Group) -> None:
    """Check that heads (or channels) can be removed everywhere.

    Args:
        lm: the model.
        group: ATTENTION for heads, FFN for channels.

    Raises:
        UserError: the architecture has no such entry, something mixes the heads, or a layer is compressed.
    """
    model_type, what = lm.model.config.model_type, "heads" if group is Group.ATTENTION else "channels"
    if not all(has_known_parts(stack, group) for stack in lm.anatomy.stacks):
        fits = sorted(
            name
            for anatomy in entries()
            if all(has_known_parts(stack, group) for stack in anatomy.stacks)
            for name in anatomy.model_types
        )
        raise UserError(f"The {what} of '{model_type}' cannot go one by one; it can be done for {', '.join(fits)}.")
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            for place in prunable_modules(stack, block, group):
                _check_place(path, block, place)


def _check_place(path: str, block: nn.Module, place: Attention | FeedForward) -> None:
    if is_dropped(block, place):
        # What the others add to the scores has a column for each of its heads too.
        if isinstance(place, Attention) and place.heads is not None and place.heads.position_bias is not None:
            raise UserError(
                f"The attention '{path}.{place.module}' is dropped, and shares its position bias with the "
                "others; heads must go before that."
            )
        return
    if isinstance(place, Attention) and place.heads is not None:
        children = dict(block.get_submodule(place.module).named_children())
        if mixer := next((name for name in place.heads.mixers if name in children), None):
            raise UserError(f"'{path}.{place.module}.{mixer}' mixes the heads, so none of them can go.")
    for projection in (*input_projections(place), place.output):
        if has_module(block, projection) and not isinstance(block.get_submodule(projection), PLAIN):
            raise UserError(
                f"The layer '{path}.{projection}' is compressed already; heads and channels must go before that."
            )


def is_dropped(block: nn.Module, place: Attention | FeedForward) -> bool:
    """Whether the attention or feed-forward was dropped from `block` by an earlier step."""
    return isinstance(block.get_submodule(place.output), Constant)


def has_known_parts(stack: Stack, group: Group) -> bool:
    """Whether it is known how the attentions (or feed-forwards) of `stack` are cut into parts."""
    if group is Group.FFN:
        return bool(stack.feed_forward)
    return bool(stack.attentions) and all(attention.heads is not None for attention in stack.attentions)


def prunable_modules(stack: Stack, block: nn.Module, group: Group) -> list[Attention | FeedForward]:
    """The attentions or feed-forwards of a block whose parts are known."""
    if group is Group.FFN:
        return [part for part in stack.feed_forward if all(has_module(block, inner) for inner in part.inner)]
    return [attention for attention in stack.attentions if attention.heads is not None]


def input_projections(place: Attention | FeedForward) -> list[str]:
    """Paths of the projections with rows of each part, whether a block has them or not."""
    if isinstance(place, FeedForward):
        return list(place.inner)
    paths = (
        place.fused, place.query, place.key, place.value, place.position_query, place.position_key,
        place.global_query, place.global_key, place.global_value,
    )  # fmt: skip
    return [path for path in paths if path is not None]


def has_module(module: nn.Module, path: str) -> bool:
    """Whether there is a module at `path` below `module`."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


class Reader(NamedTuple):
    """A projection with rows of every part.

    Args:
        site: the projection.
        stacked: the number of matrices that lie one below the other in it, each with such rows.
    """

    site: Site
    stacked: int = 1


class Counter(NamedTuple):
    """A module attribute that counts parts.

    Args:
        module: the module.
        attribute: its name.
        each: what it counts for one part.
    """

    module: nn.Module
    attribute: str
    each: int


@dataclass(frozen=True, kw_only=True)
class PrunableGroup:
    """One attention or feed-forward as a sum of parts.

    Args:
        name: path of the attention module, or of a feed-forward's output projection.
        group: attention or feed-forward.
        count: the number of parts: heads, groups of heads that share keys and values, or channels.
        readers: the projections with rows of each part.
        writer: the projection with columns of each part.
        counters: the attributes that count parts.
        vectors: paths of parameters with numbers of each part, beside the biases of the readers.
        bias: path of the embedding with a column for each part, where there is one.
        config: the keys of the configuration that count parts, each with what it counts for one part; empty where
            the class cannot build such a model.
        pinned: keys of the configuration that must then be written with their present values.
        coupling: equal in all groups that must lose the same parts.
    """

    name: str
    group: Group
    count: int
    readers: tuple[Reader, ...]
    writer: Site
    counters: tuple[Counter, ...] = ()
    vectors: tuple[str, ...] = ()
    bias: str | None = None
    config: Mapping[str, int] = field(default_factory=dict)
    pinned: Mapping[str, int] = field(default_factory=dict)
    coupling: str

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
        return sum(rows * columns for rows, columns in (site.shape for site in self.sites)) // self.count


CoupledGroups = tuple[PrunableGroup, ...]
"""Those that must lose the same parts: mostly one."""


def prunable_groups(lm: LanguageModel, groups: Sequence[Group] = (Group.ATTENTION, Group.FFN)) -> list[PrunableGroup]:
    """Find every attention and feed-forward inside the blocks whose parts can be removed, in forward order.

    Args:
        lm: the model.
        groups: which of the two.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> lm = LanguageModel.of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)))
        >>> [(group.name, group.count) for group in prunable_groups(lm)]
        [('transformer.h.0.attn', 2), ('transformer.h.0.mlp.c_proj', 32)]
    """
    return [inner for inner in _inners(lm) if inner.group in groups]


def couple_groups(inners: Iterable[PrunableGroup]) -> list[CoupledGroups]:
    """Collect the groups that must lose the same parts."""
    by_key: dict[str, list[PrunableGroup]] = {}
    for inner in inners:
        by_key.setdefault(inner.coupling, []).append(inner)
    return [tuple(members) for members in by_key.values()]


def _inners(lm: LanguageModel) -> Iterator[PrunableGroup]:
    sites = {site.name: site for site in lm.sites(("blocks",)) if isinstance(site.module, PLAIN)}
    for number, (stack, blocks) in enumerate(lm.stacks()):
        for path, block in blocks:
            for group in (Group.ATTENTION, Group.FFN):
                for place in prunable_modules(stack, block, group):
                    paths = (*input_projections(place), place.output)
                    if not all(f"{path}.{part}" in sites for part in paths if has_module(block, part)):
                        continue
                    if isinstance(place, FeedForward):
                        yield _feed_forward(path, block, place, sites)
                    else:
                        yield _attention(number, path, block, place, sites)


def _attention(number: int, path: str, block: nn.Module, place: Attention, sites: dict[str, Site]) -> PrunableGroup:
    heads = place.heads
    assert heads is not None
    module, name = block.get_submodule(place.module), f"{path}.{place.module}"
    writer, size = sites[f"{path}.{place.output}"], getattr(module, heads.size)
    many = writer.shape[1] // size
    # Where several heads share their keys, the keys count.
    count = many if place.key is None else sites[f"{path}.{place.key}"].shape[0] // size
    if not count or many % count:
        raise UserError(
            f"The {many} heads of '{name}' cannot share {count} heads of keys evenly, so the model cannot run; correct "
            "the numbers of heads in its config.json."
        )
    stacked = {place.fused: 3 if place.fused_layout == "stacked" else 1}
    counters = ((heads.count, many // count), (heads.width, many // count * size))
    declared = {heads.config_count: many // count} | ({heads.config_kv_count: 1} if heads.config_kv_count else {})
    return PrunableGroup(
        name=name,
        group=Group.ATTENTION,
        count=count,
        readers=tuple(
            Reader(sites[f"{path}.{part}"], stacked.get(part, 1))
            for part in input_projections(place)
            if has_module(block, part)
        ),
        writer=writer,
        counters=tuple(Counter(module, attribute, each) for attribute, each in counters if attribute),
        vectors=tuple(f"{name}.{vector}" for vector in heads.head_vectors),
        bias=f"{name}.{heads.position_bias}"
        if heads.position_bias and has_module(module, heads.position_bias)
        else None,
        config={key: each for key, each in declared.items() if key} if heads.config_count else {},
        pinned={heads.config_size: size} if heads.config_count and heads.config_size else {},
        coupling=name if heads.position_bias is None else f"{number}.{place.module}",
    )


def _feed_forward(path: str, block: nn.Module, place: FeedForward, sites: dict[str, Site]) -> PrunableGroup:
    writer = sites[f"{path}.{place.output}"]
    holder, _, attribute = (place.width or "").rpartition(".")
    return PrunableGroup(
        name=writer.name,
        group=Group.FFN,
        count=writer.shape[1],
        readers=tuple(Reader(sites[f"{path}.{part}"], 2 if place.fused_gate else 1) for part in place.inner),
        writer=writer,
        counters=(Counter(block.get_submodule(holder), attribute, 1),) if attribute else (),
        config={place.config_width: 1},
        coupling=writer.name,
    )
