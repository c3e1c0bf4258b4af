"""Which sites a word of the command line means: a group, `all`, a glob, or `re:` and a regular expression."""

import re
from fnmatch import fnmatchcase

from laconic.errors import UserError, unknown
from laconic.model.roles import Group
from laconic.model.site import Site


def matching(sites: list[Site], target: str) -> list[Site]:
    groups = [group.value for group in Group]
    if target == "all":
        matched = [site for site in sites if site.block is not None]
    elif target in groups:
        matched = [site for site in sites if site.group == target]
    elif target.startswith("re:"):
        matched = [site for site in sites if _pattern(target).search(site.name)]
    else:
        matched = [site for site in sites if fnmatchcase(site.name, target)]
    if not matched:
        raise _no_match(sites, target, groups)
    return matched


def _no_match(sites: list[Site], target: str, groups: list[str]) -> UserError:
    if target in groups or target.startswith("re:") or set(target) & set("*?["):
        return UserError(
            f"The target '{target}' matches no site of this model; sites are named like '{sites[0].name}'."
        )
    return unknown("target", target, [*groups, "all", *(site.name for site in sites[-2:])])


def _pattern(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"The target '{target}' is not a regular expression: {error}.") from error
