"""A plan: which method, fully specified, goes to which site; None leaves the site dense.

Written as YAML it can be read, edited and used again:

    bert.encoder.layer.0.attention.self.query: {kfac-svd: {rank: 64}}
    bert.encoder.layer.0.intermediate.dense: dense
    bert.encoder.layer.1.attention.self.{query,key,value}: {kfac-svd: {rank: 96}}

The last line is of three matrices that share one input factor, solved as one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.methods.problem import placed
from laconic.methods.spelling import method_from, spell
from laconic.yaml_loader import read_yaml

Plan = dict[str, Method | None]

DENSE = "dense"
_SEVERAL = re.compile(r"(.*)\{([^{}]+)\}")


def unit_name(sites: Sequence[str]) -> str:
    """How a plan writes sites that are solved as one: their common path, and the ends in braces."""
    if len(sites) == 1:
        return sites[0]
    paths = [site.split(".") for site in sites]
    depth = next(i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    ends = ",".join(".".join(path[depth:]) for path in paths)
    return ".".join([*paths[0][:depth], f"{{{ends}}}"])


def site_names(unit: str) -> tuple[str, ...]:
    """The sites of one line of a plan."""
    several = _SEVERAL.fullmatch(unit)
    return (unit,) if several is None else tuple(several[1] + end.strip() for end in several[2].split(","))


def write_plan(plan: Plan, path: Path) -> None:
    """Write `plan` as YAML, one site a line."""
    path.write_text(plan_text(plan))


def plan_text(plan: Plan) -> str:
    """The plan as YAML that `read_plan` takes."""
    return yaml.safe_dump(spell_plan(plan), sort_keys=False, default_flow_style=None, width=200)


def spell_plan(plan: Plan) -> dict[str, object]:
    """The plan in the words of a recipe, site by site."""
    return {name: DENSE if method is None else spell(method) for name, method in plan.items()}


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        UserError: no such file, not YAML, or a line that spells no method; the sentence names the line's site.
    """
    return plan_from(read_yaml(path, "plan"), f"The plan '{path}'")


def plan_from(spelled: object, place: str) -> Plan:
    """The plan that a mapping spells, as read from YAML.

    Raises:
        UserError: no mapping of site names to methods; the sentence begins with `place` and names the site.
    """
    if not isinstance(spelled, dict) or not spelled:
        raise must_be(place, "a mapping of site names to methods", spelled)
    return {str(site): None if line == DENSE else _line(line, f"{place}, {site}") for site, line in spelled.items()}


def _line(line: object, place: str) -> Method:
    try:
        method = method_from(line, place)
    except UserError as error:
        raise placed(error, place) from error
    if not method.has_size:
        raise must_be(place, f"a method with a size of its own, like {{svd: {{rank: 64}}}}, or {DENSE}", line)
    return method
