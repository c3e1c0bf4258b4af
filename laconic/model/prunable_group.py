"""What the attentions and the feed-forwards of a model have inside: heads and channels, parts of which each is a sum.

The output projection of an attention adds up what its heads give, that of a feed-forward what its channels give. A part
is therefore some rows of the projections that read and some columns of the one that writes, and can go without the
others (`laconic.model.width`). Heads that share keys and values are one part.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from laconic.errors import UserError
from laconic.model.anatomy import Attention, FeedForward
from laconic.model.lm import LanguageModel
from laconic.model.places import PLAIN, has, places, reading
from laconic.model.roles import Group
from laconic.model.site import Site


class Reader(NamedTuple):
    """A projection with rows of every part; `stacked` matrices lie one below the other in it, each with such rows."""

    site: Site
    stacked: int = 1


class Counter(NamedTuple):
    """An attribute of a module that says how many parts there are, `each` for every one of them."""

    module: nn.Module
    attribute: str
    each: int


@dataclass(frozen=True, kw_only=True)
class PrunableGroup:
    """The inside of one attention or feed-forward.

    name:     path of the attention module, or of a feed-forward's output projection.
    group:    attention or feed-forward.
    count:    its parts: heads, groups of heads with the same keys and values, or channels.
    readers:  the projections that have rows of each part.
    writer:   the one that has as many columns of each.
    counters: numbers that follow the count.
    vectors:  paths of parameters with numbers of each part, beside the biases of the readers.
    bias:     path of the embedding with a column for each part, where there is one.
    config:   the configuration's names for the count, each with what it counts for one part; none where the class
              could not make such a model.
    pinned:   other values of the configuration that must be said with these, as they are.
    together: the same in all that must lose the same parts.
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
    together: str

    @property
    def size(self) -> int:
        """Columns of the writer for each part."""
        return self.writer.shape[1] // self.count

    @property
    def sites(self) -> tuple[Site, ...]:
        return (*(reader.site for reader in self.readers), self.writer)

    @property
    def parameters(self) -> int:
        """Numbers of one part, in all matrices together."""
        return sum(rows * columns for rows, columns in (site.shape for site in self.sites)) // self.count


Family = tuple[PrunableGroup, ...]
"""Those that must lose the same parts: mostly one."""


def inners_of(lm: LanguageModel, groups: Sequence[Group] = (Group.ATTENTION, Group.FFN)) -> list[PrunableGroup]:
    """Every attention and feed-forward inside the blocks of `lm` whose parts can go, in forward order."""
    return [inner for inner in _inners(lm) if inner.group in groups]


def families_of(inners: Iterable[PrunableGroup]) -> list[Family]:
    """The same, by what must lose the same parts."""
    by_key: dict[str, list[PrunableGroup]] = {}
    for inner in inners:
        by_key.setdefault(inner.together, []).append(inner)
    return [tuple(members) for members in by_key.values()]


def _inners(lm: LanguageModel) -> Iterator[PrunableGroup]:
    sites = {site.name: site for site in lm.sites(("blocks",)) if isinstance(site.module, PLAIN)}
    for number, (stack, blocks) in enumerate(lm.stacks()):
        for path, block in blocks:
            for group in (Group.ATTENTION, Group.FFN):
                for place in places(stack, block, group):
                    paths = (*reading(place), place.output)
                    if not all(f"{path}.{part}" in sites for part in paths if has(block, part)):
                        continue
                    if isinstance(place, FeedForward):
                        yield _feed_forward(path, block, place, sites)
                    else:
                        yield _attention(number, path, block, place, sites)


def _attention(number: int, path: str, block: nn.Module, place: Attention, sites: dict[str, Site]) -> PrunableGroup:
    heads = place.heads
    assert heads is not None
    module, name = block.get_submodule(heads.module), f"{path}.{heads.module}"
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
    declared = {heads.config_count: many // count} | ({heads.config_keys: 1} if heads.config_keys else {})
    return PrunableGroup(
        name=name,
        group=Group.ATTENTION,
        count=count,
        readers=tuple(
            Reader(sites[f"{path}.{part}"], stacked.get(part, 1)) for part in reading(place) if has(block, part)
        ),
        writer=writer,
        counters=tuple(Counter(module, attribute, each) for attribute, each in counters if attribute),
        vectors=tuple(f"{name}.{vector}" for vector in heads.vectors),
        bias=f"{name}.{heads.bias}" if heads.bias and has(module, heads.bias) else None,
        config={key: each for key, each in declared.items() if key} if heads.config_count else {},
        pinned={heads.config: size} if heads.config_count and heads.config else {},
        together=name if heads.bias is None else f"{number}.{heads.module}",
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
        config={place.config: 1},
        together=writer.name,
    )
