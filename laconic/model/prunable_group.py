"""Attentions and feed-forwards as sums of parts: heads and channels that can be removed one by one.

The output projection of an attention sums over heads, and that of a feed-forward over channels. A part consists of rows
of the input projections and columns of the output projection, and can be removed without the others
(`laconic.model.width`). Heads that share keys and values are one part.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Constant, Dense
from laconic.model.anatomy import Anatomy, Attention, FeedForward, Stack, list_architectures
from laconic.model.enumeration import full_path
from laconic.model.lm import LanguageModel
from laconic.model.site import Group, Site, has_module

PLAIN = (nn.Linear, Conv1D, Dense)
"""The modules from which rows and columns can be removed."""


def check_prunable(lm: LanguageModel, group: Group) -> None:
    """Check that heads (or channels) can be removed everywhere.

    Args:
        lm: the model.
        group: ATTENTION for heads, FFN for channels.

    Raises:
        UserError: the entry of the architecture does not describe them, a module mixes the heads, or a layer is already
            compressed.
    """
    model_type, parts = lm.model.config.model_type, "heads" if group is Group.ATTENTION else "channels"

    def is_known(anatomy: Anatomy) -> bool:
        return all(has_known_parts(stack, group) for stack in anatomy.stacks)

    if not is_known(lm.anatomy):
        supported = list_architectures(is_known)
        raise UserError(f"The {parts} of '{model_type}' cannot be removed one by one; supported are {supported}.")
    for stack, blocks in lm.stacks():
        for path, block in blocks:
            if group is Group.ATTENTION and (obstacle := _find_obstacle(stack, block)) is not None:
                raise UserError(
                    f"The heads of this '{model_type}' cannot be removed one by one, as {obstacle}; narrow its "
                    "channels, or compress its matrices."
                )
            for layer in prunable_modules(stack, block, group):
                _check_layer(path, block, layer)


def _find_obstacle(stack: Stack, block: nn.Module) -> str | None:
    """The reason why no head of a block can be removed; None if heads can be removed."""
    known = [(block.get_submodule(layer.module), layer.heads) for layer in _headed_attentions(stack, block)]
    return next((reason for module, heads in known if heads and (reason := heads.find_obstacle(module))), None)


def _check_layer(path: str, block: nn.Module, layer: Attention | FeedForward) -> None:
    if is_dropped(block, layer):
        # The position bias of the stack has a column for each of its heads too.
        if isinstance(layer, Attention) and layer.heads is not None and layer.heads.are_coupled:
            raise UserError(
                f"The attention '{path}.{layer.module}' is dropped, and shares its position bias with the "
                "others; heads must be removed before that."
            )
        return
    if isinstance(layer, Attention) and layer.heads is not None:
        children = dict(block.get_submodule(layer.module).named_children())
        if mixer := next((name for name in layer.heads.mixers if name in children), None):
            raise UserError(f"'{path}.{layer.module}.{mixer}' mixes the heads, so none of them can be removed.")
    for projection in (*input_projections(layer), layer.output):
        if has_module(block, projection) and not isinstance(block.get_submodule(projection), PLAIN):
            raise UserError(
                f"The layer '{path}.{projection}' is compressed already; heads and channels must be removed "
                "before that."
            )


def is_dropped(block: nn.Module, layer: Attention | FeedForward) -> bool:
    """Whether the attention or feed-forward was dropped from `block` by an earlier step."""
    return isinstance(block.get_submodule(layer.output), Constant)


def has_known_parts(stack: Stack, group: Group) -> bool:
    """Whether the entry of `stack` describes the parts of its attentions or of its feed-forwards."""
    if group is Group.FFN:
        return bool(stack.feed_forward)
    return bool(stack.attentions) and all(attention.heads is not None for attention in stack.attentions)


def prunable_modules(stack: Stack, block: nn.Module, group: Group) -> list[Attention | FeedForward]:
    """The attentions or feed-forwards of a block with known parts that can be removed."""
    if group is Group.FFN:
        return [part for part in stack.feed_forward if all(has_module(block, inner) for inner in part.inner)]
    return [] if _find_obstacle(stack, block) else list(_headed_attentions(stack, block))


def _headed_attentions(stack: Stack, block: nn.Module) -> list[Attention]:
    """The attentions of a block with known heads."""
    return [
        attention
        for attention in stack.attentions
        if attention.heads is not None and has_module(block, attention.module)
    ]


def input_projections(layer: Attention | FeedForward) -> list[str]:
    """Paths of the projections with rows of each part; a block may lack some of them."""
    if isinstance(layer, FeedForward):
        return list(layer.inner)
    paths = (
        layer.fused, layer.query, layer.key, layer.value, layer.position_query, layer.position_key,
        layer.global_query, layer.global_key, layer.global_value,
    )  # fmt: skip
    return [path for path in paths if path is not None]


class InputProjection(NamedTuple):
    """An input projection, with rows of every part.

    Args:
        site: the projection.
        stacked: the number of matrices that are stacked by rows in it, each with rows of every part.
    """

    site: Site
    stacked: int = 1


class SizeAttribute(NamedTuple):
    """A module attribute that counts parts.

    Args:
        module: the module.
        attribute: its name.
        each: the number that one part adds to it.
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
        readers: the input projections, with rows of each part.
        writer: the output projection, with columns of each part.
        counters: the attributes that count parts.
        vectors: paths of other parameters with numbers of each part, besides the biases of the readers.
        bias: path of the embedding with a column for each part, or None.
        config: the keys of the configuration that count parts, each with the number that one part adds to it; empty if
            the class cannot build a model with fewer parts.
        pinned: keys of the configuration that must be written with their present values when `config` changes.
        coupling: a key that is equal for all groups that must lose the same parts.
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
"""Groups that must lose the same parts: in most models a single one."""


def prunable_groups(lm: LanguageModel, groups: Sequence[Group] = (Group.ATTENTION, Group.FFN)) -> list[PrunableGroup]:
    """Find every attention and feed-forward inside the blocks whose parts can be removed, in forward order.

    Args:
        lm: the model.
        groups: ATTENTION for attentions, FFN for feed-forwards.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> lm = LanguageModel.of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)))
        >>> [(group.name, group.count) for group in prunable_groups(lm)]
        [('transformer.h.0.attn', 2), ('transformer.h.0.mlp.c_proj', 32)]
    """
    return [group for group in _all_groups(lm) if group.group in groups]


def couple_groups(groups: Iterable[PrunableGroup]) -> list[CoupledGroups]:
    """Collect the groups that must lose the same parts."""
    by_key: dict[str, list[PrunableGroup]] = {}
    for group in groups:
        by_key.setdefault(group.coupling, []).append(group)
    return [tuple(members) for members in by_key.values()]


def _all_groups(lm: LanguageModel) -> Iterator[PrunableGroup]:
    sites = {site.name: site for site in lm.sites(("blocks",)) if isinstance(site.module, PLAIN)}
    for number, (stack, blocks) in enumerate(lm.stacks()):
        for path, block in blocks:
            for group in (Group.ATTENTION, Group.FFN):
                for layer in prunable_modules(stack, block, group):
                    paths = (*input_projections(layer), layer.output)
                    if not all(f"{path}.{part}" in sites for part in paths if has_module(block, part)):
                        continue
                    if isinstance(layer, FeedForward):
                        yield _feed_forward(path, block, layer, sites)
                    else:
                        bias = _position_bias(lm, layer, path, is_first=path == blocks[0][0])
                        yield _attention(number, path, block, layer, sites, bias)


def _position_bias(lm: LanguageModel, layer: Attention, path: str, *, is_first: bool) -> str | None:
    """Path of the position bias that loses its columns with the attention of a block; None if it has none."""
    heads = layer.heads
    assert heads is not None
    if heads.model_position_bias is not None:
        # The attentions lose the same heads, and the columns go with those of the first.
        return full_path(lm.model, heads.model_position_bias) if is_first else None
    own = f"{path}.{layer.module}.{heads.position_bias}"
    return own if heads.position_bias is not None and has_module(lm.model, own) else None


def _attention(
    number: int, path: str, block: nn.Module, layer: Attention, sites: dict[str, Site], bias: str | None
) -> PrunableGroup:
    heads = layer.heads
    assert heads is not None
    module, name = block.get_submodule(layer.module), f"{path}.{layer.module}"
    writer, size = sites[f"{path}.{layer.output}"], getattr(module, heads.size)
    head_count = writer.shape[1] // size
    # Several heads may share their keys and values; each such set of heads is one part.
    count = head_count if layer.key is None else sites[f"{path}.{layer.key}"].shape[0] // size
    if not count or head_count % count:
        raise UserError(
            f"The {head_count} heads of '{name}' cannot share {count} heads of keys evenly, so the model cannot run; "
            "correct the numbers of heads in its config.json."
        )
    stacked = {layer.fused: 3 if layer.fused_layout == "stacked" else 1}
    each = head_count // count
    counters = ((heads.count, each), (heads.width, each * size))
    declared = {heads.config_count: each} | ({heads.config_kv_count: 1} if heads.config_kv_count else {})
    return PrunableGroup(
        name=name,
        group=Group.ATTENTION,
        count=count,
        readers=tuple(
            InputProjection(sites[f"{path}.{part}"], stacked.get(part, 1))
            for part in input_projections(layer)
            if has_module(block, part)
        ),
        writer=writer,
        counters=tuple(SizeAttribute(module, attribute, amount) for attribute, amount in counters if attribute),
        vectors=tuple(f"{name}.{vector}" for vector in heads.head_vectors),
        bias=bias,
        config={key: amount for key, amount in declared.items() if key} if heads.config_count else {},
        pinned={heads.config_size: size} if heads.config_count and heads.config_size else {},
        coupling=f"{number}.{layer.module}" if heads.are_coupled else name,
    )


def _feed_forward(path: str, block: nn.Module, layer: FeedForward, sites: dict[str, Site]) -> PrunableGroup:
    writer = sites[f"{path}.{layer.output}"]
    holder, _, attribute = (layer.width or "").rpartition(".")
    return PrunableGroup(
        name=writer.name,
        group=Group.FFN,
        count=writer.shape[1],
        readers=tuple(InputProjection(sites[f"{path}.{part}"], 2 if layer.fused_gate else 1) for part in layer.inner),
        writer=writer,
        counters=(SizeAttribute(block.get_submodule(holder), attribute, 1),) if attribute else (),
        config={layer.config_width: 1} if layer.config_width else {},
        coupling=writer.name,
    )
