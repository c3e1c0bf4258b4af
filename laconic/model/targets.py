"""Which sites a word of the command line means: a group, `blocks`, `all`, a set of a paper, a glob, or `re:` and an
expression.

The sets `coc:…` are those that Namburi et al., "The Cost of Compression: Investigating the Impact of Compression on
Parametric Knowledge in Language Models" (https://arxiv.org/abs/2312.00960), prune: `coc:attention` is queries, keys
and values alone, `coc:ffn` takes the output of the attention too, and `coc:all` is every linear but the last.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from laconic.errors import UserError, unknown
from laconic.model.roles import Group, Role
from laconic.model.site import Site


class Named(Protocol):
    """What a target can name: a site, or what is in none (`laconic.model.dense`)."""

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


def _reads_attention(site: Named) -> bool:
    return site.group is Group.ATTENTION and site.role in (Role.QUERY, Role.KEY, Role.VALUE, Role.FUSED)


def _feeds_forward(site: Named) -> bool:
    return site.group is Group.FFN or (site.group is Group.ATTENTION and site.role is Role.OUTPUT)


def _is_not_last(site: Named) -> bool:
    return not site.is_lookup and not (site.group is Group.HEAD and site.role is Role.OUTPUT)


def _of(group: Group) -> Callable[[Named], bool]:
    return lambda site: site.group is group


NAMED: dict[str, Callable[[Named], bool]] = {
    **{group.value: _of(group) for group in Group},
    "blocks": lambda site: site.block is not None,
    "all": lambda site: True,
    "coc:attention": _reads_attention,
    "coc:ffn": _feeds_forward,
    "coc:all": _is_not_last,
}


def names(target: str, site: Named) -> bool:
    """Whether `target` names `site`.

    Raises:
        UserError: it is no regular expression after `re:`.
    """
    if target in NAMED:
        return NAMED[target](site)
    if target.startswith("re:"):
        return _pattern(target).search(site.name) is not None
    return fnmatchcase(site.name, target)


def matching(sites: Sequence[Site], target: str, obstacles: Mapping[str, str], dense: Sequence[Named]) -> list[Site]:
    """Those of `sites` that `target` names.

    Args:
        sites: of one model, all of them.
        target: a word of `NAMED`, a glob, or `re:` and an expression.
        obstacles: matrices of the model that are no sites, by path, each with why.
        dense: what in its blocks is in no site.

    Raises:
        UserError: there are none.
    """
    matched = [site for site in sites if names(target, site)]
    if not matched:
        raise _no_match(sites, target, obstacles, [one for one in dense if names(target, one)])
    return matched


def no_site(path: str, why: str) -> UserError:
    """The matrix at `path` was named, and is no site."""
    return UserError(f"The matrix '{path}' cannot be compressed: {why}; leave it out.")


def _no_match(sites: Sequence[Site], target: str, obstacles: Mapping[str, str], dense: Sequence[Named]) -> UserError:
    if target not in NAMED and not target.startswith("re:"):
        named = next((path for path in obstacles if fnmatchcase(path, target)), None)
        if named is not None:
            return no_site(named, obstacles[named])
    if dense:
        also = f" (and {len(dense) - 1} more)" if len(dense) > 1 else ""
        return UserError(
            f"The target '{target}' matches no site of this model: what it names is in no layer that can be "
            f"compressed, as experts of which one tensor holds all, '{dense[0].name}'{also}; name other targets, the "
            f"model has sites in {_groups(sites)}."
        )
    if target in NAMED or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; it has the groups {_groups(sites)}, "
            f"`blocks` for what is in its blocks, and sites that are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*NAMED, *(site.name for site in sites[-2:])])


def _groups(sites: Sequence[Site]) -> str:
    return ", ".join(dict.fromkeys(site.group.value for site in sites))


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error
