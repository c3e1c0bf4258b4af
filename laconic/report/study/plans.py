"""What became of each matrix, briefly: matrices that differ in their layer alone and became the same are one line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
PLACE = "#"


@dataclass(frozen=True)
class Plan:
    """What the cells of these names have in common: sites → what they became."""

    names: tuple[str, ...]
    sites: Mapping[str, str]

    @property
    def weight(self) -> int:
        """About how many bytes it takes in a page."""
        return sum(map(len, self.names)) + sum(len(site) + len(what) + 60 for site, what in self.sites.items())


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


def plans(named: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Plan]:
    """Those of records by the names of their cells, equal ones once; a cell without matrices has none."""
    owners: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, record in named:
        if found := plan_of(record):
            owners.setdefault(tuple(found.items()), []).append(name)
    return [Plan(tuple(names), dict(sites)) for sites, names in owners.items()]


def _line(name: str, parameters: object) -> str:
    if not isinstance(parameters, Mapping) or not parameters:
        return name
    said = ", ".join(
        f"{key} {spelled(value) if isinstance(value, Mapping) else value}" for key, value in parameters.items()
    )
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
