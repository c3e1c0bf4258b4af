"""Perplexity of a causal language model: per token, per word and per byte, with a sliding window.

The windows are those of `laconic.evaluate.windows`. Perplexities per word and per byte divide the same log-likelihood
by a count that does not depend on the tokenizer (Gao et al. 2020, section 3.1, https://arxiv.org/abs/2101.00027).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.eval_task import EvalTask, TaskResult, describe_tokenizer, source_of
from laconic.evaluate.halves import divide
from laconic.evaluate.metrics import Metric, Scores, SubsetMetric
from laconic.evaluate.products import FLOAT32, check_dtype
from laconic.evaluate.window_scores import score_windows
from laconic.evaluate.windows import Windows, find_windows, window_size
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

LARGEST_EXPONENT = 700.0
"""The largest exponent whose exponential is a finite float."""

TOKENS, WORDS, BYTES = 1, 2, 3
"""Columns of the table; column 0 is the negative log-likelihood in nats."""


def _perplexity_per(column: int) -> Metric:
    """Perplexity per unit of `column`."""
    return _over_texts(lambda table: float(np.exp(min(_nats_per(table, column), LARGEST_EXPONENT))))


def _over_texts(metric: Metric) -> Metric:
    """Restrict a metric to the rows with tokens to predict; a blank line has none."""
    return SubsetMetric(metric, lambda table: table[:, TOKENS] > 0)


def _nats_per(table: Scores, column: int) -> float:
    return float(table[:, 0].sum() / max(table[:, column].sum(), 1))


METRICS: dict[str, Metric] = {
    "perplexity": _perplexity_per(TOKENS),
    "word_perplexity": _perplexity_per(WORDS),
    "byte_perplexity": _perplexity_per(BYTES),
    "bits_per_byte": _over_texts(lambda table: _nats_per(table, BYTES) / float(np.log(2))),
}


@dataclass(frozen=True)
class Perplexity(EvalTask):
    """Perplexity of a causal language model on texts.

    Args:
        text: the data source.
        context: the window in tokens; None for the context of the model, up to 2048.
        stride: the number of tokens by which the window advances; None for half of the context, and all but 512 tokens
            of a context of more than 1024.
        dtype: dtype of the matrix products in the blocks, `float32` or `bfloat16`.
    """

    prefix = "perplexity"
    spellings = ("perplexity:SOURCE",)
    kinds = (ModelTask.CAUSAL,)

    text: str
    context: int | None = None
    stride: int | None = None
    dtype: str = FLOAT32

    @classmethod
    def from_name(cls, name: str) -> "Perplexity":
        """The task `perplexity:SOURCE`."""
        return cls(source_of(name))

    @property
    def name(self) -> str:
        return f"perplexity:{self.text}"

    @property
    def source(self) -> str:
        return self.text

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are the nats, tokens, words and bytes of each row."""
        windows = self.windows(lm, corpus)
        scores = score_windows(lm, divide(lm, self.dtype), windows, track, self.name)
        return self.result(tokenizer_of(lm), corpus, windows, scores.nats, scores.tokens)

    def check_model(self, lm: LanguageModel) -> None:
        super().check_model(lm)
        window_size(lm, self.context, self.stride)
        check_dtype(self.dtype, lm.device)

    def windows(self, lm: LanguageModel, corpus: Corpus) -> Windows:
        """The windows of the rows.

        Args:
            lm: the model that reads them.
            corpus: the rows.

        Raises:
            UserError: the model is of another kind, the context or the stride is out of range, or there is no text.
        """
        self.check_model(lm)
        return self.check_windows(corpus, find_windows(lm, corpus, self.context, self.stride))

    def check_windows(self, corpus: Corpus, windows: Windows) -> Windows:
        """Return the windows of the rows, after a check that there are some.

        Raises:
            UserError: there is no text.
        """
        if not corpus.examples:
            raise UserError(f"The task '{self.name}' has no rows to evaluate in '{corpus.source}'; give more rows.")
        if not windows.rows:
            raise UserError(f"The task '{self.name}' has no text to predict in '{corpus.source}'; give longer rows.")
        return windows

    def result(
        self,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        windows: Windows,
        nats: Float[Tensor, " documents"],
        tokens: Float[Tensor, " documents"],
    ) -> TaskResult:
        """The result of a model.

        Args:
            tokenizer: the tokenizer of the model.
            corpus: the rows.
            windows: their windows.
            nats: the sum of −log p over the tokens of each row.
            tokens: the number of its tokens.
        """
        sizes = [(len(text.split()), len(text.encode())) for text in (row.joined for row in corpus.examples)]
        table = torch.column_stack((nats, tokens, torch.tensor(sizes, dtype=torch.float64))).numpy()
        first = windows.start_token
        settings = {
            "context": windows.context,
            "stride": windows.stride,
            "dtype": self.dtype,
            "starts_with": None if first is None else tokenizer.convert_ids_to_tokens(first),
            "tokenizer": describe_tokenizer(tokenizer),
            "tokens": int(table[:, TOKENS].sum()),
            "words": int(table[:, WORDS].sum()),
            "bytes": int(table[:, BYTES].sum()),
        }
        return TaskResult(table, METRICS, settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS
