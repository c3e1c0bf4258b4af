"""How `compress` and `run` show what they made."""

from collections.abc import Mapping
from typing import Any

from laconic.cli.terminal import show
from laconic.compress.allocators.corrected import ALLOCATED, UNIFORM
from laconic.compress.checks import DENSE, REACHED
from laconic.recipe import Record
from laconic.report.costs import MEGABYTE
from laconic.report.evaluation import evaluation_remarks, evaluation_tables


def show_record(record: Record, as_json: bool, *before: str) -> None:
    """The JSON of the record, or a few lines after those given."""
    changes = record.changes
    same = sum(method is None for method in changes.plan.values())
    lines = [
        f"{changes.matrices} matrices: {changes.dense_nbytes / MEGABYTE:.2f} MB → {changes.nbytes / MEGABYTE:.2f} MB "
        f"({_kept(changes.nbytes, changes.dense_nbytes)}; {same} left as they were)",
        f"Weights in {record.output}: {record.file_bytes / MEGABYTE:.2f} MB, made in {record.seconds:.1f} s",
    ]
    if changes.untied:
        lines.append(f"No longer tied, so stored apart: {', '.join(changes.untied)}")
    for line in (line for step in changes.found for line in step.get(REACHED, ())):
        lines.append(f"keep {line['keep']:g} was asked for; the nearest sizes below it keep {line['kept']:.4f}")
    for step in changes.found:
        lines += said_of_allocation(step.get(ALLOCATED))
    for left in dict.fromkeys(said_of_dense(step[DENSE]) for step in changes.found if DENSE in step):
        lines.append(left)
    if record.idle:
        lines.append(f"Compressed: {', '.join(record.stacks)}; no run over text calls {', '.join(record.idle)}")
    for step in changes.dropped:
        named = "; ".join(f"{stack} {', '.join(map(str, blocks))}" for stack, blocks in step.items())
        lines.append(f"Dropped: {named}")
    tables = {} if record.evaluation is None else evaluation_tables(record.evaluation)
    remarks = [] if record.evaluation is None else evaluation_remarks(record.evaluation)
    shown = (table.to_rich(title) for title, table in tables.items())
    show(record.to_json(), as_json, *before, *lines, *shown, *remarks)


def said_of_allocation(measured: Mapping[str, Any] | None) -> list[str]:
    """The line that tells of a fall-back to uniform allocation; no line where there was none."""
    if measured is None or measured["taken"] != UNIFORM:
        return []
    ((asked, kl),) = [(way, kl) for way, kl in measured["kl"].items() if way != UNIFORM]
    return [
        f"allocate: {asked} would diverge more than the same size for every matrix, which was taken: KL {kl:.4g} "
        f"against {measured['kl'][UNIFORM]:.4g} nats on calibration rows"
    ]


def said_of_dense(left: Mapping[str, Any]) -> str:
    """A line on what a step could not compress of what it was aimed at."""
    return (
        f"Left dense in the blocks, and not counted above: {left['parameters']:,d} of {left['of']:,d} parameters "
        f"({left['share']:.1%}), {', '.join(left['names'])}"
    )


def _kept(nbytes: int, dense_nbytes: int) -> str:
    """The fraction of bytes kept. A tied matrix that gets a copy of its own had none, and no fraction."""
    return f"{nbytes / dense_nbytes:.1%} kept" if dense_nbytes else "they shared the bytes of matrices that stay"
