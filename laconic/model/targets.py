"""Which sites a word of the command line means: a group, `blocks`, `all`, a set of a paper, a glob, or `re:` and an
expression.

The sets `coc:…` are those that Namburi et al., "The Cost of Compression: Investigating the Impact of Compression on
Parametric Knowledge in Language Models" (https://arxiv.org/abs/2312.00960), prune: `coc:attention` is queries, keys
and values alone, `coc:ffn` takes the output of the attention too, and `coc:all` is every linear but the last.
"""

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from laconic.errors import UserError, unknown
from laconic.model.roles import Group, Role
from laconic.model.site import Site


def _reads_attention(site: Site) -> bool:
    return site.group is Group.ATTENTION and site.role in (Role.QUERY, Role.KEY, Role.VALUE, Role.FUSED)


def _feeds_forward(site: Site) -> bool:
    return site.group is Group.FFN or (site.group is Group.ATTENTION and site.role is Role.OUTPUT)


def _is_not_last(site: Site) -> bool:
    return not site.is_lookup and not (site.group is Group.HEAD and site.role is Role.OUTPUT)


def _of(group: Group) -> Callable[[Site], bool]:
    return lambda site: site.group is group


NAMED: dict[str, Callable[[Site], bool]] = {
    **{group.value: _of(group) for group in Group},
    "blocks": lambda site: site.block is not None,
    "all": lambda site: True,
    "coc:attention": _reads_attention,
    "coc:ffn": _feeds_forward,
    "coc:all": _is_not_last,
}


def matching(sites: list[Site], target: str, obstacles: Mapping[str, str]) -> list[Site]:
    """Those of `sites` that `target` names.

    Args:
        sites: of one model, all of them.
        target: a word of `NAMED`, a glob, or `re:` and an expression.
        obstacles: matrices of the model that are no sites, by path, each with why.

    Raises:
        UserError: there are none.
    """
    if target in NAMED:
        matched = [site for site in sites if NAMED[target](site)]
    elif target.startswith("re:"):
        matched = [site for site in sites if _pattern(target).search(site.name)]
    else:
        matched = [site for site in sites if fnmatchcase(site.name, target)]
    if not matched:
        raise _no_match(sites, target, obstacles)
    return matched


def no_site(path: str, why: str) -> UserError:
    """The matrix at `path` was named, and is no site."""
    return UserError(f"The matrix '{path}' cannot be compressed: {why}; leave it out.")


def _no_match(sites: list[Site], target: str, obstacles: Mapping[str, str]) -> UserError:
    if target not in NAMED and not target.startswith("re:"):
        named = next((path for path in obstacles if fnmatchcase(path, target)), None)
        if named is not None:
            return no_site(named, obstacles[named])
    if target in NAMED or target.startswith("re:") or set(target) & set("*?["):
        groups = ", ".join(dict.fromkeys(site.group.value for site in sites))
        return UserError(
            f"The target '{target}' matches no site of this model; it has the groups {groups}, `all` for what is in "
            f"its blocks, and sites that are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*NAMED, *(site.name for site in sites[-2:])])


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error
