"""The disk space and the time of copies of a streamed model, on which `allocate: spectrum` measures its plans."""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.calibrate.anchor import count_rows
from laconic.compress import Compress, Step
from laconic.compress.kl_metric import ROWS, ROWS_OF_ONE, split_halves
from laconic.model import Batch, LanguageModel
from laconic.model.batch import LABELS
from laconic.model.stock import text_config
from laconic.recipe.estimate.in_memory import FLOAT


@dataclass(frozen=True)
class Copies:
    """Disk space of the hidden states of the copies, and the numbers that their time depends on.

    Args:
        measured: bytes of the hidden states on disk while each block is measured.
        judged: bytes of the hidden states on disk while both plans are compared.
        rows: the number of rows on which each block is measured.
        blocks: the number of blocks that are measured.
    """

    measured: int = 0
    judged: int = 0
    rows: int = 0
    blocks: int = 0

    def extra_seconds(self, row_seconds: float, head_seconds: float) -> float:
        """The seconds beyond those that a model with one block takes, times the number of blocks.

        At each block, the copies in which an earlier one has its original matrices run too. At the end all of them run.

        Args:
            row_seconds: the time of a forward pass of the whole model over one row.
            head_seconds: the part of it after the last block.
        """
        further = max(0, self.blocks - 1)
        return further * self.rows * ((row_seconds - head_seconds) / 2 + head_seconds)


def copies_of(lm: LanguageModel, step: Step, batches: Sequence[Batch]) -> Copies | None:
    """Compute disk space and numbers for the copies of a step, from shapes.

    Args:
        lm: the model without weights, before the step.
        step: the step.
        batches: the calibration batches.

    Returns:
        None if the step makes no copies.
    """
    if not isinstance(step, Compress) or step.plan is not None or step.allocate != "spectrum":
        return None
    rows = split_halves(batches, ROWS_OF_ONE if lm.task.predicts_once_per_row else ROWS)
    if rows is None or step.currency != "bytes":
        return None
    parts = {site.block or site.name for site in step.sites(lm)}
    stacks = [sum(path in parts for path, _ in blocks) for _, blocks in lm.stacks()]
    return Copies(
        measured=_states(lm, rows.measured, stacks, 2 + len(parts) - sum(stacks)),
        judged=_states(lm, rows.judging, [0] * len(stacks), 3),
        rows=count_rows(rows.measured),
        blocks=len(parts),
    )


def _states(lm: LanguageModel, rows: Sequence[Batch], stacks: Sequence[int], models: int) -> int:
    """The largest size of the hidden states of copies on disk.

    Args:
        lm: the model.
        rows: the rows that the copies run on.
        stacks: for each stack, the number of copies that first differ from the others in it.
        models: the number of copies, and of originals, that differ before the first stack.
    """
    tokens = [sum(batch["input_ids"].numel() for batch in rows)]
    # The second stack is a decoder, which reads the targets.
    tokens.append(sum(batch.get(LABELS, batch["input_ids"]).numel() for batch in rows))
    width = FLOAT * text_config(lm.model.config).hidden_size
    kept = largest = 0
    for count, more in zip(tokens, stacks, strict=False):
        models += more
        # Before and after the current block; those after the last block are kept.
        largest = max(largest, kept + 2 * models * width * count)
        kept += models * width * count
    return largest
