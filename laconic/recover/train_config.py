"""How a training goes, and what it goes on."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from laconic.errors import UserError, install
from laconic.model import LanguageModel
from laconic.recover.rows import Lines, Read

NEEDED = ("accelerate", "tensorboard")
Precision = Literal["fp32", "bf16", "fp16"]
Decay = Literal["linear", "cosine", "constant"]
Checkpoint = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a training goes; the fields are those of the steps that train."""

    epochs: float
    batch_size: int
    accumulate: int
    learning_rate: float
    warmup: float
    weight_decay: float
    decay: Decay
    precision: Precision
    evaluations: int
    patience: int | None
    checkpoint: Checkpoint
    seed: int

    def steps(self, rows: int) -> tuple[int, int]:
        """Updates between two measurements, and in all, which is a multiple of that."""
        wanted = self.epochs * math.ceil(rows / (self.batch_size * self.accumulate))
        often = max(1, round(wanted / self.evaluations))
        return often, often * max(1, round(wanted / often))


@dataclass(frozen=True, kw_only=True)
class Material:
    """The rows to train on, those held out, and who reads them."""

    train: Lines
    held_out: Lines
    student: LanguageModel
    teacher: LanguageModel | None

    def first(self) -> Read:
        """A row as both read it."""
        return self.train.batch(range(1), self.student, self.teacher)


def check_installed() -> None:
    """Raise UserError where what training needs beside the core is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Training needs {' and '.join(missing)}, not installed here: {install('train')}.")
