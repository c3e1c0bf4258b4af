"""What the record of a cell says beside its figures."""

import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

import torch

from laconic.calibrate.passes import machine as on_device
from laconic.errors import LONGEST_SENTENCE, shortened
from laconic.evaluate.score_cache import versions
from laconic.formats.autotune import machine
from laconic.recipe.write import spell_recipe
from laconic.study.cells import Cell
from laconic.study.ledger import FAILED, VERSION


def blank(cell: Cell, workers: int, device: str = "cpu") -> dict[str, Any]:
    """What the record of a cell says whatever comes of it; `workers` measured side by side, on `device` each."""
    # The processor tells the CPU well enough.
    other = {} if device == "cpu" else {"device": on_device(torch.device(device))["device"]}
    return {
        "version": VERSION,
        "key": cell.key,
        "baseline": cell.baseline,
        "axes": dict(cell.axes),
        "family": cell.family,
        "recipe": spell_recipe(cell.recipe),
        "machine": {**machine(), **other, "system": platform.system()},
        "versions": versions(),
        "workers": workers,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def failed(kind: str, sentence: str) -> dict[str, Any]:
    """What the record of a cell that failed says of the cause."""
    said = " ".join(shortened(sentence, LONGEST_SENTENCE).split())
    return {"state": FAILED, "error": {"kind": kind, "sentence": said or kind}}


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for each number that JSON has none for; `not_finite` says where and what it was."""
    lost = {place: str(number) for place, number in _numbers(record, "") if not isfinite(number)}
    return {**_without(record), "not_finite": lost} if lost else dict(record)


def _numbers(value: object, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for name, part in value.items() if isinstance(value, Mapping) else ():
        yield from _numbers(part, f"{place}.{name}" if place else str(name))


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value
