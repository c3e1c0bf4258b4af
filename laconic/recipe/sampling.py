"""Draw calibration rows from a corpus and tokenize them."""

from dataclasses import dataclass
from typing import ClassVar

from laconic.calibrate import Calibration, Labels
from laconic.calibrate.anchor import count_rows
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, sample
from laconic.errors import must_be
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track
from laconic.typed import Typed

FROM_DATA: Labels = "data"
LENGTH, CAUSAL_LENGTH = 128, 512
"""Tokens of a row by default: the usual numbers for encoders and for causal language models."""
LARGEST_SEED = 2**32 - 1
"""The Trainer of transformers also seeds NumPy, whose seeds have at most 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Sampling(metaclass=Typed):
    """Settings for drawing calibration data from a corpus.

    Args:
        samples: the number of rows to draw.
        seed: the random seed of the drawing, in [0, 2³² − 1].
        max_length: the largest number of tokens in a row; longer rows are truncated.
        batch_size: rows in each batch.
        labels: the source of the labels with which gradients for the Fisher information are computed.

    Example:
        >>> Sampling(samples=0)
        Traceback (most recent call last):
            ...
        laconic.errors.UserError: samples must be at least 1; got 0.
    """

    name: ClassVar[str] = "sampling"

    samples: int = 128
    seed: int = 0
    max_length: int = LENGTH
    batch_size: int = 16
    labels: Labels = "auto"

    def __post_init__(self) -> None:
        for name, least in {"samples": 1, "max_length": 2, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise must_be(name, f"at least {least}", getattr(self, name))
        if not 0 <= self.seed <= LARGEST_SEED:
            raise must_be("seed", f"in [0, {LARGEST_SEED}]", self.seed)

    def of(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Calibration:
        """Draw rows and tokenize them.

        Args:
            lm: the model whose tokenizer is used.
            corpus: the rows.
            track: reports progress when statistics are collected from the result.
        """
        tokens = batches(
            lm,
            sample(corpus, self.samples, self.seed),
            batch_size=self.batch_size,
            max_length=self.max_length,
            seed=self.seed,
            labelled=self.labels == FROM_DATA,
        )
        return Calibration(
            tokens,
            self.labels,
            self.seed,
            track,
            corpus,
            max_length=self.max_length,
            batch_size=self.batch_size,
            samples=self.samples,
        )


def usual_length(task: ModelTask) -> int:
    """The tokens of a row that `laconic compress` reads by default: 512 for causal language models, 128 for others.

    Args:
        task: the kind of the model's predictions.

    Example:
        >>> usual_length(ModelTask.CAUSAL)
        512
    """
    return CAUSAL_LENGTH if task is ModelTask.CAUSAL else LENGTH


def draw_again(lm: LanguageModel, data: Calibration, corpus: Corpus) -> Calibration:
    """Draw the same calibration rows again and tokenize them for another model.

    Args:
        lm: the model that a step put in the place of the one that `data` was tokenized for.
        data: the calibration data.
        corpus: the rows that `data` was drawn from.
    """
    sampling = Sampling(
        # A plain encoder has a row for each text of a pair.
        samples=data.samples or count_rows(data.batches),
        seed=data.seed,
        max_length=data.max_length,
        batch_size=data.batch_size,
        labels=data.labels,
    )
    return sampling.of(lm, corpus, data.track)
