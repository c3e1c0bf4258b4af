"""Which sites a target names, and how much of the blocks can be compressed at all.

A target is a group, `blocks`, `all`, a set of The Cost of Compression, a glob over site names, or a regular expression
after `re:`. The sets are those that Namburi et al., "The Cost of Compression: Investigating the Impact of Compression
on Parametric Knowledge in Language Models" (https://arxiv.org/abs/2312.00960), prune: `:attention` is queries, keys and
values; `:ffn` is the feed-forwards and the output of the attention; `:all` is every linear but the last.

Some parameters of a block are in no linear layer and stay dense. The largest are experts: transformers stores those of
a layer as one parameter of shape (experts, out, in) or (experts, in, out).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError, unknown
from laconic.formats import Format
from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import find_sites, find_stacks
from laconic.model.site import Group, Role, Site, guess_group
from laconic.model.usage import trace_usage


class Targetable(Protocol):
    """What a target can match: a site, or a parameter that is in no site."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> Group: ...
    @property
    def role(self) -> Role: ...
    @property
    def block(self) -> str | None: ...
    @property
    def is_lookup(self) -> bool: ...


def _reads_attention(site: Targetable) -> bool:
    return site.group is Group.ATTENTION and site.role in (Role.QUERY, Role.KEY, Role.VALUE, Role.FUSED)


def _feeds_forward(site: Targetable) -> bool:
    return site.group is Group.FFN or (site.group is Group.ATTENTION and site.role is Role.OUTPUT)


def _is_not_last(site: Targetable) -> bool:
    return not site.is_lookup and not (site.group is Group.HEAD and site.role is Role.OUTPUT)


def _of(group: Group) -> Callable[[Targetable], bool]:
    return lambda site: site.group is group


TARGETS: dict[str, Callable[[Targetable], bool]] = {
    **{group.value: _of(group) for group in Group},
    "blocks": lambda site: site.block is not None,
    "all": lambda site: True,
    "cost-of-compression:attention": _reads_attention,
    "cost-of-compression:ffn": _feeds_forward,
    "cost-of-compression:all": _is_not_last,
    "coc:attention": _reads_attention,
    "coc:ffn": _feeds_forward,
    "coc:all": _is_not_last,
}


def matches(target: str, site: Targetable) -> bool:
    """Whether a target matches a site.

    Args:
        target: a word of `TARGETS`, a glob, or `re:` and a regular expression.
        site: a site, or a parameter that is in none.

    Raises:
        UserError: the regular expression is invalid.
    """
    if target in TARGETS:
        return TARGETS[target](site)
    if target.startswith("re:"):
        return _pattern(target).search(site.name) is not None
    return fnmatchcase(site.name, target)


def select_sites(
    sites: Sequence[Site], target: str, obstacles: Mapping[str, str], dense: Sequence[Targetable]
) -> list[Site]:
    """Select the sites that a target matches.

    Args:
        sites: all sites of a model.
        target: as for `matches`.
        obstacles: the matrices of the model that cannot be compressed, by path, each with the reason.
        dense: the parameters of its blocks that are in no site.

    Raises:
        UserError: the target matches none.
    """
    matched = [site for site in sites if matches(target, site)]
    if not matched:
        raise _no_match(sites, target, obstacles, [one for one in dense if matches(target, one)])
    return matched


def excluded_error(path: str, why: str) -> UserError:
    """The error for a target that names a matrix which cannot be compressed; `why` is the reason as a clause."""
    return UserError(f"The matrix '{path}' cannot be compressed: {why}; leave it out.")


def _no_match(
    sites: Sequence[Site], target: str, obstacles: Mapping[str, str], dense: Sequence[Targetable]
) -> UserError:
    if target not in TARGETS and not target.startswith("re:"):
        named = next((path for path in obstacles if fnmatchcase(path, target)), None)
        if named is not None:
            return excluded_error(named, obstacles[named])
    if dense:
        also = f" (and {len(dense) - 1} more)" if len(dense) > 1 else ""
        return UserError(
            f"The target '{target}' matches no site of this model: what it names is in no layer that can be "
            f"compressed, as experts of which one tensor holds all, '{dense[0].name}'{also}; name other targets, the "
            f"model has sites in {_groups(sites)}."
        )
    if target in TARGETS or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; it has the groups {_groups(sites)}, "
            f"`blocks` for what is in its blocks, and sites that are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*TARGETS, *(site.name for site in sites[-2:])])


def _groups(sites: Sequence[Site]) -> str:
    return ", ".join(dict.fromkeys(site.group.value for site in sites))


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error


_MOST_KINDS = 3
"""How many kinds of them a sentence names."""


@dataclass(frozen=True)
class DenseParameter:
    """A parameter of a block with two or more dimensions that is in no site; targets match it like a site.

    Args:
        name: dotted path from the whole model.
        group: the part of the transformer, guessed from the path.
        block: dotted path of its block.
        count: number of elements.
        role: always OTHER.
        is_lookup: always False.
    """

    name: str
    group: Group
    block: str
    count: int
    role: Role = Role.OTHER
    is_lookup: bool = False


@dataclass(frozen=True)
class Coverage:
    """How much of the blocks can be compressed, within some targets.

    Args:
        dense: the parameters that cannot.
        sites: number of elements of the matrices that can, counted as before any compression.
    """

    dense: tuple[DenseParameter, ...]
    sites: int

    @property
    def count(self) -> int:
        """Number of elements that stay dense."""
        return sum(parameter.count for parameter in self.dense)

    @property
    def total(self) -> int:
        """Number of elements of everything that the targets match in the blocks."""
        return self.count + self.sites

    @property
    def share(self) -> float:
        """The fraction of elements that stay dense."""
        return self.count / self.total if self.total else 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Paths of the dense parameters inside a block, with `*` for numbers, the largest first."""
        sizes: dict[str, int] = {}
        for parameter in self.dense:
            path = re.sub(r"(?<=\.)\d+(?=\.)", "*", parameter.name.removeprefix(f"{parameter.block}."))
            sizes[path] = sizes.get(path, 0) + parameter.count
        return tuple(sorted(sizes, key=lambda path: -sizes[path]))

    @property
    def named(self) -> str:
        """The largest of them in words, as "mlp.experts.gate_up_proj, mlp.experts.down_proj and 2 more"."""
        more = len(self.kinds) - _MOST_KINDS
        return ", ".join(self.kinds[:_MOST_KINDS]) + (f" and {more} more" if more > 0 else "")


def find_dense_parameters(model: PreTrainedModel, anatomy: Anatomy) -> list[DenseParameter]:
    """Find every parameter with two or more dimensions that is in a block and in no site, in forward order.

    Embeddings are left out, as nothing is multiplied by them, and so are layers that a run over text never calls.
    """
    usage = trace_usage(model, globally=anatomy.global_attention)
    idle = frozenset[str]() if usage is None else usage.uncalled
    covered = idle | {name for site in find_sites(model, anatomy) for name in site.names}
    found: dict[int, DenseParameter] = {}
    for _, blocks in find_stacks(model, anatomy):
        for block, module in blocks:
            for path, part in _wholes(block, module):
                if not isinstance(part, (Format, nn.Embedding)) and path not in covered:
                    for name, parameter in part.named_parameters(prefix=path, recurse=False):
                        if parameter.dim() > 1 and id(parameter) not in found:
                            group = guess_group(name.removeprefix(block))
                            found[id(parameter)] = DenseParameter(name, group, block, parameter.numel())
    return list(found.values())


def measure_coverage(
    model: PreTrainedModel, anatomy: Anatomy, targets: Sequence[str], sites: Sequence[Site]
) -> Coverage:
    """Measure how much of the blocks can be compressed, within some targets.

    Args:
        model: the model.
        anatomy: its anatomy.
        targets: the targets.
        sites: all sites that they match.
    """
    named = {site.name for site in sites}
    numbers: dict[int, int] = {}
    for _, blocks in find_stacks(model, anatomy):
        for block, module in blocks:
            for path, part in _wholes(block, module):
                if path in named or any(name.startswith(f"{path}.") for name in named if isinstance(part, Format)):
                    numbers[id(part)] = _numbers(part)
    every = find_dense_parameters(model, anatomy)
    dense = [one for one in every if any(matches(target, one) for target in targets)]
    return Coverage(tuple(dense), sum(numbers.values()))


def _wholes(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`module` and what lies in it, each by its path; a format is one, whatever it is made of."""
    yield path, module
    if not isinstance(module, Format):
        for name, child in module.named_children():
            yield from _wholes(f"{path}.{name}", child)


def _numbers(module: nn.Module) -> int:
    """Of the matrix that `module` is or stands for."""
    if isinstance(module, Format):
        return module.shape[0] * module.shape[1]
    return module.get_parameter("weight").numel()
