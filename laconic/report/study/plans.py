"""What became of each matrix, briefly: matrices that differ in their layer alone and became the same are one line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
PLACE = "#"


def plan_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Sites → what they became, in the order of the sites; `encoder.layer.{0–5}.output.dense` stands for six."""
    found: dict[tuple[str, str], list[int]] = {}
    for site, what in (record.get("sites") or {}).items():
        layer = LAYER.search(site)
        pattern = LAYER.sub(PLACE, site, count=1) if layer else site
        found.setdefault((pattern, spelled(what)), []).extend([int(layer[0])] if layer else [])
    return {pattern.replace(PLACE, _span(layers), 1): what for (pattern, what), layers in found.items()}


def spelled(what: object) -> str:
    """A method as the command line has it."""
    if isinstance(what, Mapping):
        return " + ".join(_line(str(name), parameters) for name, parameters in what.items())
    return str(what)


def same_plans(plans: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Equal plans under one name, which says whose they are."""
    owners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, plan in plans.items():
        if plan:
            owners.setdefault(tuple(plan.items()), []).append(name)
    return {_together(names): dict(plan) for plan, names in owners.items()}


def _together(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, and {len(names) - 1} more with the same plan"


def _line(name: str, parameters: object) -> str:
    if not isinstance(parameters, Mapping) or not parameters:
        return name
    said = ", ".join(f"{key} {spelled(value) if isinstance(value, Mapping) else value}" for key, value in parameters.items())
    return f"{name}: {said}"


def _span(layers: Sequence[int]) -> str:
    """0–3, 5: runs of consecutive numbers by their ends; a single number as it is."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return said if len(layers) == 1 else f"{{{said}}}"
