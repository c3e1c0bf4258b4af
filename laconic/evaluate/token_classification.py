"""Evaluate token classification: F1 of named entities, and the accuracy of words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.calibrate.classes import class_names
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import convert_labels
from laconic.calibrate.row import tokenizer_of
from laconic.calibrate.token_classification import WordRow, tag_words
from laconic.errors import UserError
from laconic.evaluate.entities import check_seqeval, count_entities, entity_metrics, entity_types
from laconic.evaluate.eval_task import TaskResult, tokenizer_name
from laconic.evaluate.labelled_task import LabelledTask, context_of
from laconic.evaluate.metrics import Metric
from laconic.evaluate.prediction import batch_by_length, predict_batches
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

BATCH = 32
CONTEXT = 512
OUTSIDE = "O"
"""The tag of a word in no entity; it is the prediction for words that the model does not read."""


@dataclass(frozen=True)
class TokenClassification(LabelledTask):
    """Named entities, or other classes of words, of a model for token classification.

    If the classes are tags such as B-PER, the main metric is the F1 of entities; else it is the accuracy of words.
    """

    prefix = "token-classification"
    spellings = ("token-classification:SOURCE",)
    kinds = (ModelTask.TOKEN_CLASSIFICATION,)
    example = "dev.conll"

    def check_model(self, lm: LanguageModel) -> None:
        super().check_model(lm)
        if entity_types(class_names(lm)):
            check_seqeval(self.name)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are explained in `laconic.evaluate.entities`."""
        self.check_model(lm)
        names, context = class_names(lm), context_of(lm, CONTEXT)
        classes = [[int(number) for number in row] for row in convert_labels(lm, corpus) if isinstance(row, tuple)]
        sentences = [
            tag_words(lm, tokenizer_of(lm), example.words, true, context)
            for example, true in zip(corpus.examples, classes, strict=True)
        ]
        if not any(classes):
            raise UserError(f"The task '{self.name}' has no words in '{corpus.source}'; give more rows.")
        types = entity_types(names)
        table = [
            _scores(
                [names[number] for number in true],
                [None if number is None else names[number] for number in found],
                types,
            )
            for true, found in zip(classes, self._predict(lm, sentences, track), strict=True)
        ]
        settings: dict[str, Any] = {
            "context": context,
            "tokenizer": tokenizer_name(lm),
            "classes": list(names),
            "words": sum(map(len, classes)),
            "words_not_read": sum(token is None for sentence in sentences for token in sentence.tokens),
        }
        if types:
            settings["seqeval"] = version("seqeval")
        return TaskResult(np.array(table, dtype=np.float64), self.metrics(settings), settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return entity_metrics(entity_types(settings["classes"]))

    def _predict(self, lm: LanguageModel, sentences: Sequence[WordRow], track: Track) -> Iterator[list[int | None]]:
        """The predicted class of each word of each sentence; None for a word that the model does not read."""
        parts, data = batch_by_length(lm, [sentence.row for sentence in sentences], BATCH)
        found: dict[int, list[int]] = {}
        for part, (_, predictions) in zip(parts, predict_batches(lm, data, track, self.name), strict=True):
            best: Tensor = predictions.values.argmax(-1)
            sizes = torch.bincount(predictions.rows, minlength=len(part)).tolist()
            found |= {index: classes.tolist() for index, classes in zip(part, best.split(sizes), strict=True)}
        for index, sentence in enumerate(sentences):
            classes = iter(found[index])
            yield [None if token is None else next(classes) for token in sentence.tokens]


def _scores(true: Sequence[str], predicted: Sequence[str | None], types: Sequence[str]) -> list[int]:
    """One line of the table."""
    right = sum(tag == other for tag, other in zip(true, predicted, strict=True))
    found = [OUTSIDE if tag is None else tag for tag in predicted]
    return [right, len(true), *(count_entities(true, found, types) if types else [])]
