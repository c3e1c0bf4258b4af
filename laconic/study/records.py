"""What the record of a cell says beside its figures."""

import platform
from datetime import UTC, datetime
from typing import Any

from laconic.evaluate.kept import versions
from laconic.formats.fastest import machine
from laconic.recipe.write import spell_recipe
from laconic.study.cells import Cell
from laconic.study.ledger import FAILED, VERSION


def blank(cell: Cell, workers: int) -> dict[str, Any]:
    """What the record of a cell says whatever comes of it; `workers` measured side by side."""
    return {
        "version": VERSION,
        "key": cell.key,
        "baseline": cell.baseline,
        "axes": dict(cell.axes),
        "family": cell.family,
        "recipe": spell_recipe(cell.recipe),
        "machine": {**machine(), "system": platform.system()},
        "versions": versions(),
        "workers": workers,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def failed(kind: str, sentence: str) -> dict[str, Any]:
    """What the record of a cell that failed says of the cause."""
    return {"state": FAILED, "error": {"kind": kind, "sentence": " ".join(sentence.split()) or kind}}
