"""Select sites by targets, and measure how much of the blocks can be compressed.

A target is a group, `blocks`, `all`, a set of The Cost of Compression, a glob over site names, or a regular expression
after `re:`. The sets are those that Namburi et al., "The Cost of Compression: Investigating the Impact of Compression
on Parametric Knowledge in Language Models" (https://arxiv.org/abs/2312.00960), prune: `:attention` is queries, keys and
values; `:ffn` is the feed-forwards and the output of the attention; `:all` is every linear but the last.

Some parameters of a block are in no matrix that can be compressed and stay dense, such as the router of a mixture.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from laconic.errors import UserError, unknown
from laconic.formats import ExpertStack, Format
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model.anatomy import Anatomy
from laconic.model.dense_parameters import DenseParameter, block_modules, find_dense_parameters
from laconic.model.site import Group, Role, Site, matrix_shape

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
    sites: Sequence[Site], target: str, excluded: Mapping[str, str], dense: Sequence[DenseParameter]
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
    sites: Sequence[Site], target: str, excluded: Mapping[str, str], dense: Sequence[DenseParameter]
) -> UserError:
    if target not in TARGETS and not target.startswith("re:"):
        path = next((path for path in excluded if fnmatchcase(path, target)), None)
        if path is not None:
            return excluded_error(path, excluded[path])
    if dense and target in (dense[0].name, dense[0].unit):
        return UserError(f"The parameter '{dense[0].name}' cannot be compressed, as {dense[0].reason}; leave it out.")
    if dense:
        also = f" (and {len(dense) - 1} more)" if len(dense) > 1 else ""
        return UserError(
            f"The target '{target}' matches no site of this model, only parameters that cannot be compressed: "
            f"'{dense[0].name}'{also}, as {dense[0].reason}; name other targets, the model has sites in "
            f"{_groups(sites)}."
        )
    if target in TARGETS or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; it has the groups {_groups(sites)}, "
            f"`blocks` for all sites in its blocks, and sites that are named like '{sites[0].name}'."
        )
    # All experts of a stack are one target.
    units = list(dict.fromkeys(site.unit for site in sites))
    return unknown("target", target, [*TARGETS, *(get_close_matches(target, units, n=2) or units[-2:])])


def _groups(sites: Sequence[Site]) -> str:
    groups = list(dict.fromkeys(site.group for site in sites))
    if Group.EXPERTS in groups and Group.FFN not in groups:
        # The target `ffn` selects experts too.
        groups.insert(groups.index(Group.EXPERTS), Group.FFN)
    return ", ".join(group.value for group in groups)


MAX_DENSE_SHARE = 0.1
"""Largest fraction of the targeted parameters that may stay dense unless a step allows it."""
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
    for _, path, module in block_modules(model, anatomy):
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
