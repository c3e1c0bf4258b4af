"""`CompressEstimate`, which `laconic.compress` and `laconic.run` return for a dry run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from laconic.api.results import Part, Result
from laconic.recipe.estimate.estimate import Estimate
from laconic.recipe.estimate.units import format_bytes, format_seconds
from laconic.report.tables import Column, Table

T = TypeVar("T")
IN_MEMORY, STREAMED = "in memory", "streamed"


@dataclass(frozen=True, repr=False, eq=False)
class CompressEstimate(Result):
    """The time, memory and disk space that a run would take, with the whole model in memory and one block at a time.

    Args:
        estimate: the estimated costs.

    Example:
        >>> from laconic import compress
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> result = compress("model", "svd", keep=0.5, output="small", dry_run=True)
        >>> result.estimate.streams, result.to_frame()["run"].tolist()
        (False, ['in memory', 'streamed'])
    """

    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic compress --dry-run --json` prints."""
        return self.estimate.to_json()

    def parts(self) -> Iterator[Part]:
        """The costs of both ways, and the one that the run takes."""
        yield "", self._table()
        yield self._headline()
        yield from self._notes()

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each way to run."""
        ways = {IN_MEMORY: self.estimate.in_memory, STREAMED: self.estimate.streamed}
        return [
            {"run": way, "seconds": cost.seconds, "memory": cost.memory, "scratch": cost.scratch, "output": cost.output}
            for way, cost in ways.items()
            if cost is not None
        ]

    def _headline(self) -> str:
        """The way that the run takes."""
        estimate = self.estimate
        if estimate.streams and estimate.streamed is not None:
            return f"The run loads one block at a time, and takes about {estimate.streamed}."
        return f"The run holds the whole model in memory, and takes about {estimate.in_memory}."

    def _notes(self) -> Sequence[str]:
        """The reason why there are no seconds."""
        reason = self.estimate.unmeasured
        return () if reason is None else [f"The time was not measured. {reason}"]

    def _table(self) -> Table:
        """The costs of both ways."""
        columns = (Column("run"), Column("time"), Column("memory"), Column("scratch"), Column("result"))
        rows = [
            (
                row["run"],
                _format(row["seconds"], format_seconds),
                *(_format(row[name], format_bytes) for name in ("memory", "scratch", "output")),
            )
            for row in self._rows()
        ]
        return Table(columns, tuple(rows))


def _format(value: T | None, function: Callable[[T], str]) -> str | None:
    return None if value is None else function(value)
