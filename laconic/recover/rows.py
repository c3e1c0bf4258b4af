"""The rows of a training: drawn from the data, split, tokenized for the student and the teacher, and collated."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from laconic.calibrate import Calibration
from laconic.calibrate.batching import tokenize_rows
from laconic.calibrate.collation import collate, to_device
from laconic.calibrate.corpus import Corpus, sample
from laconic.calibrate.row import Row
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel, ModelTask, predict
from laconic.progress import Track

MOST_SOFT_TARGETS = 2**26
"""Largest number of precomputed teacher logits (256 MiB in fp32); with more, the teacher runs in every epoch."""

DistillationBatch = dict[str, Any]
"""`{"student": batch, "teacher": batch, "soft_targets": values}`: the same rows for both models, and
predictions of the teacher."""

BATCHES_SORTED = 16
"""The number of batches whose rows are sorted by length together."""


@dataclass(frozen=True)
class RowDataset(Dataset):
    """Tokenized rows of the student and the teacher.

    Args:
        student: rows tokenized for the student.
        teacher: the same rows tokenized for the teacher; None without a teacher.
        soft_targets: the teacher's precomputed predictions of each row, (predictions, values); None if the teacher runs
            in every epoch.
    """

    student: Sequence[Row]
    teacher: Sequence[Row] | None = None
    soft_targets: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.student)

    def __getitem__(self, index: int) -> tuple[Row, Row | None, Tensor | None]:
        soft_targets = None if self.soft_targets is None else self.soft_targets[index]
        return self.student[index], None if self.teacher is None else self.teacher[index], soft_targets

    def batch(self, numbers: Iterable[int], student: LanguageModel, teacher: LanguageModel | None) -> DistillationBatch:
        """Return a padded batch of some rows.

        Args:
            numbers: the numbers of the rows.
            student: the student.
            teacher: the teacher, or None.
        """
        return collate_rows([self[number] for number in numbers], student, teacher)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row, labels included."""
        return [len(row.input_ids) + (len(row.labels) if isinstance(row.labels, list) else 0) for row in self.student]


class LengthGroupedSampler(Sampler):
    """Row numbers in random order, in batches of rows of similar length.

    The order depends only on the seed and the epoch, so a resumed training sees the same rows. The last batch is filled
    up with the first rows, as accelerate does for several processes.

    Args:
        lengths: number of tokens of each row.
        batch_size: number of rows of a batch.
        seed: seed of the order.

    Example:
        >>> sorted(LengthGroupedSampler([3, 1, 2], batch_size=1, seed=0))
        [0, 1, 2]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return self._batch_size * math.ceil(len(self._lengths) / self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch; Trainer calls this before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self._seed} {self._epoch}")
        rows = len(self._lengths)
        numbers = generator.sample(range(rows), rows)
        size, group = self._batch_size, self._batch_size * BATCHES_SORTED
        batches = []
        for start in range(0, len(numbers), group):
            ordered = sorted(numbers[start : start + group], key=lambda number: self._lengths[number])
            batches += [ordered[offset : offset + size] for offset in range(0, len(ordered), size)]
        # The incomplete batch comes last, so that the others are not shifted.
        full, rest = [b for b in batches if len(b) == size], [b for b in batches if len(b) < size]
        generator.shuffle(full)
        ordered = [number for batch in (*full, *rest) for number in batch]
        return islice(cycle(ordered), len(self))


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The rows of a training, and its models.

    Args:
        train: rows to train on.
        held_out: rows to evaluate the loss on.
        student: the model that is trained.
        teacher: the teacher; None for training without one.
    """

    train: RowDataset
    held_out: RowDataset
    student: LanguageModel
    teacher: LanguageModel | None

    def first(self) -> DistillationBatch:
        """Return a batch with the first row only."""
        return self.train.batch(range(1), self.student, self.teacher)


def collate_rows(
    lines: Sequence[tuple[Row, Row | None, Tensor | None]], student: LanguageModel, teacher: LanguageModel | None
) -> DistillationBatch:
    """Collate rows to batches for the student and the teacher.

    Args:
        lines: rows of a `RowDataset`: the student's row, the teacher's row, and its predictions.
        student: the student.
        teacher: the teacher; without one the batch has only the key `student`.
    """
    ours, theirs, soft_targets = zip(*lines, strict=True)
    batch: DistillationBatch = {"student": collate(student, ours)}
    if teacher is not None:
        batch["teacher"] = collate(teacher, [row for row in theirs if row is not None])
        if soft_targets[0] is not None:
            found = [values for values in soft_targets if values is not None]
            if teacher.task is ModelTask.QUESTION_ANSWERING:
                tokens = batch["teacher"]["input_ids"].shape[-1]
                found = [_fit_tokens(values, tokens) for values in found]
            batch["soft_targets"] = torch.cat(found)
    return batch


def _fit_tokens(values: Tensor, tokens: int) -> Tensor:
    """Logits of the tokens of one row for a batch of `tokens` tokens: those of padding are −∞ in every batch."""
    return functional.pad(values, (0, tokens - values.shape[-1]), value=-torch.inf)


def split(data: Calibration, rows: int | None, held_out: int) -> tuple[Corpus, Corpus]:
    """Draw rows to train on and `held_out` other rows.

    Args:
        data: calibration data with its corpus.
        rows: number of training rows; None for all that are not held out.
        held_out: number of held-out rows, reduced to a tenth of the corpus if that is less.

    Returns:
        The training rows and the held-out rows.

    Raises:
        UserError: the data has too few rows for both.
    """
    if data.corpus is None:
        raise UserError("Training needs the rows that the calibration data was drawn from; name their source as data.")
    corpus = data.corpus
    # At most a tenth of a small corpus is held out.
    count = min(held_out, len(corpus.examples) // 10)
    if count < 1:
        raise UserError(
            f"'{corpus.source}' has {len(corpus.examples)} rows, too few for training and evaluation; give at least 10."
        )
    rows_drawn = sample(corpus, count + (len(corpus.examples) if rows is None else rows), data.seed)
    if rows is not None and rows > len(rows_drawn.examples) - count:
        most = len(rows_drawn.examples) - count
        raise must_be("rows", f"at most {most}, as '{corpus.source}' has that many beside {count} held out", rows)
    return replace(rows_drawn, examples=rows_drawn.examples[count:]), replace(
        rows_drawn, examples=rows_drawn.examples[:count]
    )


def tokenize_corpus(
    corpus: Corpus, data: Calibration, student: LanguageModel, teacher: LanguageModel | None, labelled: bool
) -> RowDataset:
    """Tokenize a corpus for the student and the teacher.

    Args:
        corpus: the rows.
        data: calibration data, for its `max_length` and seed.
        student: the model to train.
        teacher: its teacher, or None.
        labelled: whether to read the labels of the data for the student.

    Raises:
        UserError: no row has tokens, a row is empty for only one of the two models, or a label is missing or unknown.
    """
    ours = list(tokenize_rows(student, corpus, data.max_length, data.seed, labelled))
    if not ours:
        raise UserError(f"No row of '{corpus.source}' has tokens; give longer texts.")
    if teacher is None:
        return RowDataset(ours)
    theirs = list(tokenize_rows(teacher, corpus, data.max_length, data.seed))
    if len(theirs) != len(ours):
        raise UserError(
            f"Of the rows of '{corpus.source}' the student reads {len(ours)} and the teacher {len(theirs)}; "
            "leave out rows that are empty to one of them."
        )
    return RowDataset(ours, theirs)


@torch.inference_mode()
def precompute_predictions(teacher: LanguageModel, lines: RowDataset, batch_size: int, track: Track) -> RowDataset:
    """Run the teacher on all rows, and return the rows with its predictions.

    Args:
        teacher: the teacher.
        lines: the rows.
        batch_size: number of rows of a batch.
        track: shows progress.

    Returns:
        The rows with predictions, or the given rows if the predictions would be more than `MOST_SOFT_TARGETS` numbers.
    """
    assert lines.teacher is not None
    rows = lines.teacher
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
    soft_targets: dict[int, Tensor] = {}
    total = 0
    starts = range(0, len(by_length), batch_size)
    for start in track(starts, "Predictions of the teacher"):
        numbers = by_length[start : start + batch_size]
        batch = collate(teacher, [rows[number] for number in numbers])
        predictions, _ = predict(teacher, to_device(batch, teacher.device))
        total += predictions.values.numel()
        if total * len(starts) > MOST_SOFT_TARGETS * (start // batch_size + 1):
            return lines
        soft_targets |= {
            number: predictions.values[predictions.rows == position].cpu() for position, number in enumerate(numbers)
        }
    return replace(lines, soft_targets=[soft_targets[number] for number in range(len(lines))])
