"""A plan: a method with a size for each matrix, or None for a matrix that stays dense.

A plan can be written as YAML, edited, and used again:

    bert.encoder.layer.0.attention.self.query: {kfac-svd: {rank: 64}}
    bert.encoder.layer.0.intermediate.dense: dense
    bert.encoder.layer.1.attention.self.{query,key,value}: {kfac-svd: {rank: 96}}

The last line is for three matrices that share one input factor and are solved as one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from laconic.errors import UserError, add_place, must_be
from laconic.methods import Method
from laconic.methods.registry import parse_method, to_config
from laconic.yaml_loader import read_yaml

Plan = dict[str, Method | None]
"""By layer name, or name of several layers solved as one: a method with a size, or None if it stays dense."""

DENSE = "dense"
_SEVERAL = re.compile(r"(.*)\{([^{}]+)\}")


def group_name(sites: Sequence[str]) -> str:
    """Return the name in a plan of layers that are solved as one: their common path with the endings in braces.

    Example:
        >>> group_name(["h.0.attn.q", "h.0.attn.k"])
        'h.0.attn.{q,k}'
    """
    if len(sites) == 1:
        return sites[0]
    paths = [site.split(".") for site in sites]
    depth = next(i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    ends = ",".join(".".join(path[depth:]) for path in paths)
    return ".".join([*paths[0][:depth], f"{{{ends}}}"])


def site_names(line: str) -> tuple[str, ...]:
    """Return the names of the layers in one line of a plan; the inverse of `group_name`.

    Example:
        >>> site_names("h.0.attn.{q,k}")
        ('h.0.attn.q', 'h.0.attn.k')
    """
    match = _SEVERAL.fullmatch(line)
    return (line,) if match is None else tuple(match[1] + end.strip() for end in match[2].split(","))


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as YAML, one line for each matrix.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "plan.yaml"
        >>> write_plan({"layer.0": None}, file)
        >>> read_plan(file)
        {'layer.0': None}
    """
    path.write_text(plan_text(plan))


def plan_text(plan: Plan) -> str:
    r"""Return the plan as YAML text, in the form that `read_plan` reads.

    Example:
        >>> plan_text({"layer.0": None})
        '{layer.0: dense}\n'
    """
    return yaml.safe_dump(plan_to_config(plan), sort_keys=False, default_flow_style=None, width=200)


def plan_to_config(plan: Plan) -> dict[str, object]:
    """Return the plan as a mapping of names to methods in the notation of recipes.

    Example:
        >>> from laconic.methods import Svd
        >>> plan_to_config({"layer.0": Svd(rank=2), "layer.1": None})
        {'layer.0': {'svd': {'rank': 2}}, 'layer.1': 'dense'}
    """
    return {name: DENSE if method is None else to_config(method) for name, method in plan.items()}


def read_plan(path: Path) -> Plan:
    """Read a plan from a YAML file.

    Raises:
        UserError: there is no such file, it is not YAML, or a line has no valid method; the message names the matrix.
    """
    return parse_plan(read_yaml(path, "plan"), f"The plan '{path}'")


def parse_plan(mapping: object, place: str) -> Plan:
    """Parse a plan from a mapping that was read from YAML.

    Args:
        mapping: layer names with methods in the notation of recipes, or with `dense`, as read from YAML.
        place: the name of the plan in error messages.

    Raises:
        UserError: it is no such mapping, or a method is invalid or has no size; the message names the matrix.

    Example:
        >>> parse_plan({"layer.0": {"svd": {"rank": 2}}, "layer.1": "dense"}, "plan")
        {'layer.0': Svd(rank=2, rank_ratio=None, multiple=8), 'layer.1': None}
    """
    if not isinstance(mapping, dict) or not mapping:
        raise must_be(place, "a mapping of site names to methods", mapping)
    return {str(site): None if line == DENSE else _method(line, f"{place}, {site}") for site, line in mapping.items()}


def _method(line: object, place: str) -> Method:
    try:
        method = parse_method(line, place)
    except UserError as error:
        raise add_place(error, place) from error
    if not method.has_size:
        raise must_be(place, f"a method with a size of its own, like {{svd: {{rank: 64}}}}, or {DENSE}", line)
    return method
