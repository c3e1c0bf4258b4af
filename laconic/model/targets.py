"""Select sites by targets, and measure how much of the blocks can be compressed.

A target is a group, `blocks`, `all`, a set of The Cost of Compression, a glob over site names, or a regular expression
after `re:`. The sets are those that Namburi et al., "The Cost of Compression: Investigating the Impact of Compression
on Parametric Knowledge in Language Models" (https://arxiv.org/abs/2312.00960), prune: `:attention` is queries, keys and
values; `:ffn` is the feed-forwards and the output of the attention; `:all` is every linear but the last.

Some parameters of a block are in no matrix that can be compressed and stay dense, such as the router of a mixture.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError, unknown
from laconic.formats import ExpertStack, Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import find_sites, find_stacks
from laconic.model.site import Group, Role, Site, guess_group, matrix_shape
from laconic.model.usage import trace_usage


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

    @property
    def unit(self) -> str:
        """Its name."""
        return self.name


Targetable = Site | DenseParameter
FEED_FORWARDS = (Group.FFN, Group.EXPERTS)
"""The groups that the target `ffn` selects."""
INPUT_ROLES = (Role.QUERY, Role.KEY, Role.VALUE, Role.FUSED)
_PAPER_SETS: dict[str, Callable[[Targetable], bool]] = {
    "attention": lambda site: site.group is Group.ATTENTION and site.role in INPUT_ROLES,
    "ffn": lambda site: site.group in FEED_FORWARDS or (site.group is Group.ATTENTION and site.role is Role.OUTPUT),
    "all": lambda site: not site.is_lookup and not (site.group is Group.HEAD and site.role is Role.OUTPUT),
}
TARGETS: dict[str, Callable[[Targetable], bool]] = {
    **{group.value: lambda site, group=group: site.group is group for group in Group},
    "ffn": lambda site: site.group in FEED_FORWARDS,
    "blocks": lambda site: site.block is not None,
    "all": lambda site: True,
    **{f"cost-of-compression:{name}": condition for name, condition in _PAPER_SETS.items()},
    # The names of earlier versions.
    **{f"coc:{name}": condition for name, condition in _PAPER_SETS.items()},
}


def matches(target: str, site: Targetable) -> bool:
    """Whether a target matches a site.

    Args:
        target: a word of `TARGETS`, a glob, or `re:` and a regular expression.
        site: a site, or a parameter that is in no site.

    Raises:
        UserError: the regular expression is invalid.
    """
    if target in TARGETS:
        return TARGETS[target](site)
    if target.startswith("re:"):
        try:
            return any(re.search(target.removeprefix("re:"), name) for name in {site.name, site.unit})
        except re.error as error:
            raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error
    return any(fnmatchcase(name, target) for name in {site.name, site.unit})


def select_sites(
    sites: Sequence[Site], target: str, excluded: Mapping[str, str], dense: Sequence[Targetable]
) -> list[Site]:
    """Select the sites that a target matches.

    Args:
        sites: all sites of a model.
        target: as for `matches`.
        excluded: the matrices of the model that cannot be compressed, by path, each with the reason.
        dense: the parameters of its blocks that are in no site.

    Raises:
        UserError: the target matches none.
    """
    matched = [site for site in sites if matches(target, site)]
    if not matched:
        raise _no_match_error(sites, target, excluded, [parameter for parameter in dense if matches(target, parameter)])
    return matched


def excluded_error(path: str, reason: str) -> UserError:
    """The error for a target that names a matrix which cannot be compressed; `reason` is a clause."""
    return UserError(f"The matrix '{path}' cannot be compressed: {reason}; leave it out.")


def _no_match_error(
    sites: Sequence[Site], target: str, excluded: Mapping[str, str], dense: Sequence[Targetable]
) -> UserError:
    if target not in TARGETS and not target.startswith("re:"):
        path = next((path for path in excluded if fnmatchcase(path, target)), None)
        if path is not None:
            return excluded_error(path, excluded[path])
    if dense:
        also = f" (and {len(dense) - 1} more)" if len(dense) > 1 else ""
        return UserError(
            f"The target '{target}' matches no site of this model, only parameters that cannot be compressed: "
            f"'{dense[0].name}'{also}; name other targets, the model has sites in {_groups(sites)}."
        )
    if target in TARGETS or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; it has the groups {_groups(sites)}, "
            f"`blocks` for all sites in its blocks, and sites that are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*TARGETS, *(site.name for site in sites[-2:])])


def _groups(sites: Sequence[Site]) -> str:
    return ", ".join(dict.fromkeys(site.group.value for site in sites))


_NAMED_KINDS = 3
"""The number of kinds of dense parameters that a sentence names."""


@dataclass(frozen=True)
class Coverage:
    """The part of the blocks that can be compressed, within some targets.

    Args:
        dense: the parameters that cannot be compressed.
        sites: the number of elements of all other matrices, counted as before any compression.
    """

    dense: tuple[DenseParameter, ...]
    sites: int

    @property
    def count(self) -> int:
        """Number of elements that stay dense."""
        return sum(parameter.count for parameter in self.dense)

    @property
    def total(self) -> int:
        """Number of elements of all parameters that the targets match in the blocks."""
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
        """The largest kinds in words, such as "mlp.experts.gate_up_proj, mlp.experts.down_proj and 2 more"."""
        more = len(self.kinds) - _NAMED_KINDS
        return ", ".join(self.kinds[:_NAMED_KINDS]) + (f" and {more} more" if more > 0 else "")


def find_dense_parameters(
    model: PreTrainedModel, anatomy: Anatomy, sites: Sequence[Site] | None = None
) -> list[DenseParameter]:
    """Find every parameter with two or more dimensions that is in a block and in no site, in forward order.

    Embeddings are left out, as nothing is multiplied by them, and so are layers that a run over text never calls.

    Args:
        model: the model.
        anatomy: its anatomy.
        sites: all its sites, if they were found before.
    """
    usage = trace_usage(model, globally=anatomy.global_attention)
    covered = {name for site in sites or find_sites(model, anatomy) for name in (site.unit, *site.names)}
    uncalled = frozenset() if usage is None else usage.uncalled
    dense: dict[int, DenseParameter] = {}
    for block, path, module in _block_modules(model, anatomy):
        if isinstance(module, (Format, ExpertStack, nn.Embedding)) or path in covered | uncalled:
            continue
        # The biases of all experts are one parameter with two dimensions.
        own = {f"{path}.{name}" for name in (find_expert_stacks(module) if is_experts(module) else {})} & covered
        parts = own | {f"{name}_bias" for name in own}
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.dim() > 1 and id(parameter) not in dense and name not in parts:
                group = guess_group(name.removeprefix(block))
                dense[id(parameter)] = DenseParameter(name, group, block, parameter.numel())
    return list(dense.values())


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
    names = {site.unit for site in sites}
    counts: dict[object, int] = {}
    for _, path, module in _block_modules(model, anatomy):
        contains_site = isinstance(module, (Format, ExpertStack)) and any(name.startswith(f"{path}.") for name in names)
        if isinstance(module, ExpertStack) and (path in names or contains_site):
            counts[path] = module.experts * math.prod(module.shape)
        elif path in names or contains_site:
            counts[id(module)] = math.prod(matrix_shape(module))
        elif is_experts(module):
            stacks = {f"{path}.{name}": stack for name, stack in find_expert_stacks(module).items()}
            counts |= {name: s.experts * math.prod(s.shape) for name, s in stacks.items() if name in names}
    parameters = find_dense_parameters(model, anatomy)
    dense = tuple(parameter for parameter in parameters if any(matches(target, parameter) for target in targets))
    return Coverage(dense, sum(counts.values()))


def _block_modules(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[tuple[str, str, nn.Module]]:
    """The path of each block with the path and module of everything in it, except modules inside a format."""
    for _, blocks in find_stacks(model, anatomy):
        for block, root in blocks:
            formats: tuple[str, ...] = ()
            for path, module in root.named_modules(prefix=block, remove_duplicate=False):
                if path.startswith(formats):
                    continue
                if isinstance(module, (Format, ExpertStack)):
                    formats = (*formats, f"{path}.")
                yield block, path, module
