"""Evaluate extractive question answering: exact match and F1 of the best span over all windows of the context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.question_answering import Window, windows
from laconic.calibrate.row import tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.eval_task import TaskResult, tokenizer_name
from laconic.evaluate.labelled_task import LabelledTask, context_of
from laconic.evaluate.metrics import Metric
from laconic.evaluate.prediction import batch_by_length, predict_batches
from laconic.evaluate.squad import answer_metrics, answer_scores
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

BATCH = 32
CONTEXT = 384
MAX_ANSWER = 30
"""The largest number of tokens in an answer, as in the code of BERT."""


@dataclass(frozen=True)
class Span:
    """A part of a context.

    Args:
        begin: its first character.
        end: the character behind its last.
        score: the sum of the logits of its first and its last token.
    """

    begin: int
    end: int
    score: float


@dataclass(frozen=True)
class QuestionAnswering(LabelledTask):
    """Questions whose answers are parts of a context.

    If the data has questions without an answer, the model may give none: it does if the classification token has a
    larger score than the best span, in every window.
    """

    prefix = "question-answering"
    spellings = ("question-answering:SOURCE",)
    kinds = (ModelTask.QUESTION_ANSWERING,)
    example = "dev-v1.1.json"

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are explained in `laconic.evaluate.squad`."""
        self.check_model(lm)
        if not corpus.examples:
            raise UserError(f"The task '{self.name}' has no rows to evaluate in '{corpus.source}'; give more rows.")
        context, unanswerable = context_of(lm, CONTEXT), sum(example.answers == () for example in corpus.examples)
        parts = [windows(lm, tokenizer_of(lm), example, context) for example in corpus.examples]
        answers = self._answers(lm, corpus, parts, unanswerable > 0, track)
        table = []
        for example, answer in zip(corpus.examples, answers, strict=True):
            right = [one.text for one in example.answers or ()]
            table.append((*answer_scores(answer, right), float(bool(right)), 1.0))
        settings = {
            "context": context,
            "longest_answer": MAX_ANSWER,
            "tokenizer": tokenizer_name(lm),
            "windows": sum(map(len, parts)),
            "unanswerable": unanswerable,
        }
        return TaskResult(np.array(table), answer_metrics(settings), settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return answer_metrics(settings)

    def _answers(
        self, lm: LanguageModel, corpus: Corpus, parts: Sequence[Sequence[Window]], may_refuse: bool, track: Track
    ) -> list[str]:
        """The predicted answer of each question; empty for none."""
        flat = [(number, window) for number, part in enumerate(parts) for window in part]
        order, data = batch_by_length(lm, [window.row for _, window in flat], BATCH)
        best: dict[int, Span] = {}
        null = [float("inf")] * len(parts)
        for part, (_, predictions) in zip(order, predict_batches(lm, data, track, self.name), strict=True):
            # Rows 2i and 2i + 1 are the first and the last token of the answer of row i.
            for index, (start, end) in zip(part, predictions.values.float().unflatten(0, (-1, 2)), strict=True):
                number, window = flat[index]
                span = best_span(start, end, window.places)
                if span is not None and (number not in best or span.score > best[number].score):
                    best[number] = span
                null[number] = min(null[number], float(start[window.null] + end[window.null]))
        texts = [example.text if example.pair is None else example.pair for example in corpus.examples]
        answers = []
        for number, text in enumerate(texts):
            span = best.get(number)
            is_refused = span is None or (may_refuse and null[number] > span.score)
            answers.append("" if span is None or is_refused else text[span.begin : span.end])
        return answers


def best_span(
    start: Float[Tensor, " tokens"], end: Float[Tensor, " tokens"], places: Sequence[tuple[int, int]]
) -> Span | None:
    """The span with the largest sum of logits, among those of at most `MAX_ANSWER` tokens of the context.

    Args:
        start: the logits of the first token.
        end: the logits of the last token.
        places: (begin, end) of each token in the context; (0, 0) for tokens that are not in it. Padding has none.

    Returns:
        The span; None if the window has no token of the context.

    Example:
        >>> logits = torch.tensor([9.0, 0.0, 2.0, 1.0])
        >>> best_span(logits, logits, [(0, 0), (0, 3), (4, 9), (10, 12)])
        Span(begin=4, end=9, score=4.0)
    """
    context = [at for at, (begin, stop) in enumerate(places) if stop > begin]
    if not context:
        return None
    scores = start[context][:, None] + end[context][None, :]
    at = torch.arange(len(context))
    length = at[None, :] - at[:, None]
    scores = scores.masked_fill((length < 0) | (length >= MAX_ANSWER), -torch.inf)
    first, last = divmod(int(scores.argmax()), len(context))
    return Span(places[context[first]][0], places[context[last]][1], float(scores[first, last]))
