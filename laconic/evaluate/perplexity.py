"""Perplexity of a causal language model: per token, per word and per byte, with a sliding window.

Each row of the corpus is a separate document, which follows the start token. A document longer than the context is read
in windows that advance by `stride`. Each token is scored once, in the first window that contains it, with at least
`context − stride` tokens before it (or all preceding tokens). Perplexities per word and per byte divide the same
log-likelihood by a count that does not depend on the tokenizer (Gao et al. 2020, section 3.1,
https://arxiv.org/abs/2101.00027).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from laconic.calibrate.batching import max_positions
from laconic.calibrate.collation import collate
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import IGNORED, Row, tokenizer_of
from laconic.errors import UserError, must_be
from laconic.evaluate.eval_task import EvalTask, TaskResult, source_of, stack_scores, tokenizer_name
from laconic.evaluate.metrics import Metric, Scores, SubsetMetric
from laconic.evaluate.prediction import predict_batches, rows_per_batch
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.progress import Track

BATCH = 16
MAX_CONTEXT = 1024
"""The default context in tokens, for models with a longer one."""
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
        context: the window in tokens; None for the context of the model, up to 1024.
        stride: the number of tokens by which the window advances; None for half of the context.
    """

    prefix = "perplexity"
    spellings = ("perplexity:SOURCE",)
    kinds = (ModelTask.CAUSAL,)

    text: str
    context: int | None = None
    stride: int | None = None

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
        self.check_model(lm)
        context, stride = self._window(lm)
        first = start_token(lm)
        data, rows = _windows(lm, corpus, context, stride)
        sums = torch.zeros(len(corpus.examples), 2, dtype=torch.float64)
        start = 0
        for batch, (values, lines, tokens, *_) in predict_batches(lm, data, track, self.name):
            assert tokens is not None, "the next tokens are the labels of a causal model"
            nats = functional.cross_entropy(values.float(), tokens, reduction="none").double()
            end = start + len(batch["input_ids"])
            documents = torch.tensor(rows[start:end])[lines]
            sums.index_add_(0, documents, torch.stack((nats, torch.ones_like(nats)), dim=1))
            start = end
        sizes = [(len(text.split()), len(text.encode())) for text in (row.joined for row in corpus.examples)]
        table = stack_scores([torch.cat((sums, torch.tensor(sizes).reshape(-1, 2)), dim=1)], self.name, corpus)
        if not table[:, TOKENS].any():
            raise UserError(f"The task '{self.name}' has no text to predict in '{corpus.source}'; give longer rows.")
        settings = {
            "context": context,
            "stride": stride,
            "starts_with": None if first is None else tokenizer_of(lm).convert_ids_to_tokens(first),
            "tokenizer": tokenizer_name(lm),
            "tokens": int(table[:, TOKENS].sum()),
            "words": int(table[:, WORDS].sum()),
            "bytes": int(table[:, BYTES].sum()),
        }
        return TaskResult(table, METRICS, settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS

    def _window(self, lm: LanguageModel) -> tuple[int, int]:
        longest = max_positions(lm)
        context = self.context or min(longest or MAX_CONTEXT, MAX_CONTEXT)
        if context < 2 or (longest is not None and context > longest):
            raise must_be("The context", f"2 to {longest or 'any number of'} tokens for '{lm.source}'", context)
        stride = self.stride or context // 2
        if not 1 <= stride < context:
            raise must_be("The stride", f"between 1 and the context less one ({context - 1})", stride)
        return context, stride


def start_token(lm: LanguageModel) -> int | None:
    """The token that is put before a document, so that the document's first token is predicted too.

    Args:
        lm: the model, with its tokenizer.

    Returns:
        The start token of the tokenizer, else the end token, else None.
    """
    tokenizer = tokenizer_of(lm)
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((token for token in tokens if isinstance(token, int)), None)


def _windows(lm: LanguageModel, corpus: Corpus, context: int, stride: int) -> tuple[list[Batch], list[int]]:
    """All windows of all documents as batches, and the index of the document of each window."""
    first = start_token(lm)
    rows: list[Row] = []
    documents: list[int] = []
    for document, example in enumerate(corpus.examples):
        ids = tokenizer_of(lm)(example.joined, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for token in (first, *ids) if token is not None]
        for start, new in windows(len(ids), context, stride):
            tokens = ids[start : start + context]
            scored = [token if index >= new - start else IGNORED for index, token in enumerate(tokens)]
            rows.append(Row(tokens, labels=scored))
            documents.append(document)
    size = rows_per_batch(lm, context, BATCH)
    return [collate(lm, rows[begin : begin + size]) for begin in range(0, len(rows), size)], documents


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int]]:
    """The windows of a document.

    Args:
        tokens: the number of tokens of the document.
        context: the number of tokens in a window.
        stride: the number of tokens by which the window advances.

    Yields:
        The position where the window starts, and the position of the first token that is not in an earlier window.

    Example:
        >>> list(windows(10, context=4, stride=2))
        [(0, 0), (2, 4), (4, 6), (6, 8)]
    """
    end = 0
    for start in range(0, max(tokens, 1), stride):
        if tokens > 1:
            yield start, end
        end = min(start + context, tokens)
        if end == tokens:
            return
