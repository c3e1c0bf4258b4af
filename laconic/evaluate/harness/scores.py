"""What the harness scores each row with, as a table; its aggregations as metrics of such a table."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from laconic.evaluate.intervals import Metric, Table

PLAIN_FILTER = "none"
"""The name of the filter that leaves answers as they are."""

Aggregation = Callable[[Sequence[Any]], float]


def table_of(samples: Sequence[Mapping[str, Any]]) -> tuple[Table, dict[str, int]]:
    """The scores of each row, and how many columns each metric has, in their order.

    `samples` are the harness's: one for each row and filter. A metric whose scores are no numbers (texts that are
    compared all together, as for BLEU) has no columns.
    """
    scores: dict[str, list[tuple[float, ...] | None]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            scores.setdefault(spelled(metric, sample["filter"]), []).append(_numbers(sample[metric]))
    rows = len({sample["doc_id"] for sample in samples})
    columns: list[np.ndarray] = []
    widths: dict[str, int] = {}
    for metric, lines in scores.items():
        sizes = {0 if line is None else len(line) for line in lines}
        if len(lines) == rows and len(sizes) == 1 and 0 not in sizes:
            widths[metric] = sizes.pop()
            columns.append(np.array(lines, dtype=np.float64))
    return (np.concatenate(columns, axis=1) if columns else np.empty((rows, 0))), widths


def metrics_of(widths: Mapping[str, int], aggregations: Mapping[str, Aggregation]) -> dict[str, Metric]:
    """By the name of each metric, the harness's aggregation of its columns."""
    metrics: dict[str, Metric] = {}
    start = 0
    for name, width in widths.items():
        metrics[name] = _metric(start, width, aggregations[name.partition(",")[0]])
        start += width
    return metrics


def spelled(metric: str, filter: str) -> str:
    """As the harness spells it in its results, without the filter that does nothing."""
    return metric if filter == PLAIN_FILTER else f"{metric},{filter}"


def _metric(start: int, width: int, aggregation: Aggregation) -> Metric:
    def metric(table: Table) -> float:
        if width == 1:
            return float(aggregation(table[:, start].tolist()))
        return float(aggregation([tuple(line) for line in table[:, start : start + width].tolist()]))

    return metric


def _numbers(score: Any) -> tuple[float, ...] | None:
    parts = score if isinstance(score, (tuple, list)) else (score,)
    return tuple(float(part) for part in parts) if all(isinstance(part, (Real, np.bool_)) for part in parts) else None
