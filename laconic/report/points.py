"""One compressed model on the trade-off between size and quality, and the table of many."""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.report.tables import Column, Table

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Point:
    """method:  what it is called in the table and the picture.
    keep:       the fraction of bytes that was asked for; 1 for the original.
    nbytes:     bytes of the targeted matrices, and dense_nbytes what they were.
    file_bytes: of all weights.
    kl:         to the original, nats per prediction.
    agreement:  fraction of the predictions that the original makes too.
    latency:    seconds of one batch.
    """

    method: str
    keep: float
    nbytes: int
    dense_nbytes: int
    file_bytes: int
    kl: float
    agreement: float
    latency: float

    @property
    def kept(self) -> float:
        """The fraction of bytes that is really left."""
        return self.nbytes / self.dense_nbytes


def table_of(points: Sequence[Point], original: Point, kl: str, agreement: str) -> Table:
    """The points under the original; `kl` and `agreement` say what the two qualities are called for this model."""
    columns = (
        Column("method"),
        Column("keep", "{:.2f}"),
        Column("matrices MB", "{:.1f}"),
        Column("model MB", "{:.1f}"),
        Column(kl, "{:.4f}"),
        Column(agreement, "{:.1%}"),
        Column("ms per batch", "{:.0f}"),
        Column("speed-up", "{:.2f}×"),
    )
    rows = tuple(
        (
            point.method,
            point.keep,
            point.nbytes / MEGABYTE,
            point.file_bytes / MEGABYTE,
            point.kl,
            point.agreement,
            point.latency * 1e3,
            original.latency / point.latency,
        )
        for point in (original, *points)
    )
    return Table(columns, rows)
