"""The rows of a training: drawn from the data, split, tokenized for the student and the teacher, and collated."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from laconic.calibrate import Calibration
from laconic.calibrate.batching import Row, collate, to_device, tokenize_rows
from laconic.calibrate.corpus import Corpus, sample
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel, predict
from laconic.progress import Track

MOST_TOLD = 2**26
"""Numbers that a teacher predicts are kept up to this many (256 MiB); beyond, it is asked anew in every epoch."""

DistillationBatch = dict[str, Any]
"""`{"student": batch, "teacher": batch, "told": values}`: rows as both read them, and the teacher's predictions."""

TOGETHER = 16
"""Batches whose rows are sorted together."""


@dataclass(frozen=True)
class RowDataset(Dataset):
    """Tokenized rows of the student and the teacher.

    Args:
        student: rows as the student reads them.
        teacher: the same rows as the teacher reads them; None without a teacher.
        told: the teacher's predictions of each row; None if they are computed in every epoch.
    """

    student: Sequence[Row]
    teacher: Sequence[Row] | None = None
    told: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.student)

    def __getitem__(self, index: int) -> tuple[Row, Row | None, Tensor | None]:
        told = None if self.told is None else self.told[index]
        return self.student[index], None if self.teacher is None else self.teacher[index], told

    def batch(self, numbers: Iterable[int], student: LanguageModel, teacher: LanguageModel | None) -> DistillationBatch:
        """A padded batch of the rows of these numbers."""
        return collate_rows([self[number] for number in numbers], student, teacher)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row, labels included."""
        return [len(row.input_ids) + (len(row.labels) if isinstance(row.labels, list) else 0) for row in self.student]


class LengthGroupedSampler(Sampler):
    """Row numbers in random order, in batches of rows of similar length.

    The order depends on the seed and the epoch alone, so a training that continues sees the same rows. The last batch
    is filled with the first rows, as several processes would do.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch.
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
        """Called before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        drawn = random.Random(f"{self._seed} {self._epoch}")
        rows = len(self._lengths)
        numbers = drawn.sample(range(rows), rows)
        size, several = self._batch_size, self._batch_size * TOGETHER
        batches = []
        for start in range(0, len(numbers), several):
            ordered = sorted(numbers[start : start + several], key=lambda number: self._lengths[number])
            batches += [ordered[at : at + size] for at in range(0, len(ordered), size)]
        # A batch that is not full comes last, where it moves no other.
        full, rest = [b for b in batches if len(b) == size], [b for b in batches if len(b) < size]
        drawn.shuffle(full)
        ordered = [number for batch in (*full, *rest) for number in batch]
        return islice(cycle(ordered), len(self))


def collate_rows(
    lines: Sequence[tuple[Row, Row | None, Tensor | None]], student: LanguageModel, teacher: LanguageModel | None
) -> DistillationBatch:
    """Pad rows to a batch of the student and, if there is a teacher, of the teacher, with its predictions if known."""
    ours, theirs, told = zip(*lines, strict=True)
    batch: DistillationBatch = {"student": collate(student, ours)}
    if teacher is not None:
        batch["teacher"] = collate(teacher, [row for row in theirs if row is not None])
        if told[0] is not None:
            batch["told"] = torch.cat([values for values in told if values is not None])
    return batch


def split(data: Calibration, rows: int | None, held_out: int) -> tuple[Corpus, Corpus]:
    """Draw rows to train on and `held_out` other rows.

    Args:
        data: calibration data with its corpus.
        rows: number of training rows; None for all but those held out.
        held_out: number of held-out rows; at most a tenth of the corpus is taken.

    Raises:
        UserError: the data has too few rows for both.
    """
    if data.corpus is None:
        raise UserError("Training needs the rows that the calibration data was drawn from; name their source as data.")
    every = data.corpus
    # A small corpus can spare a tenth.
    spared = min(held_out, len(every.examples) // 10)
    if spared < 1:
        raise UserError(
            f"'{every.source}' has {len(every.examples)} rows, too few to train on some and judge by others; "
            "give at least 10."
        )
    drawn = sample(every, spared + (len(every.examples) if rows is None else rows), data.seed)
    if rows is not None and rows > len(drawn.examples) - spared:
        most = len(drawn.examples) - spared
        raise must_be("rows", f"at most {most}, as '{every.source}' has that many beside {spared} held out", rows)
    return replace(drawn, examples=drawn.examples[spared:]), replace(drawn, examples=drawn.examples[:spared])


def tokenize_corpus(
    corpus: Corpus, data: Calibration, student: LanguageModel, teacher: LanguageModel | None, labelled: bool
) -> RowDataset:
    """Tokenize a corpus for the student and the teacher.

    Args:
        corpus: the rows.
        data: calibration data, for its `max_length` and seed.
        student: the model to train.
        teacher: its teacher, or None.
        labelled: read the labels of the data for the student.

    Raises:
        UserError: no row has tokens, the two leave out different rows, or a label is missing or unknown.
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
    """The same rows with the teacher's predictions, unless these are more than `MOST_TOLD` numbers."""
    assert lines.teacher is not None
    rows = lines.teacher
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
    told: dict[int, Tensor] = {}
    kept = 0
    starts = range(0, len(by_length), batch_size)
    for start in track(starts, "Asking the teacher"):
        numbers = by_length[start : start + batch_size]
        batch = collate(teacher, [rows[number] for number in numbers])
        predictions, _ = predict(teacher, to_device(batch, teacher.device))
        kept += predictions.values.numel()
        if kept * len(starts) > MOST_TOLD * (start // batch_size + 1):
            return lines
        told |= {number: predictions.values[predictions.rows == at].cpu() for at, number in enumerate(numbers)}
    return replace(lines, told=[told[number] for number in range(len(lines))])
