"""LAMA as an evaluation task: the rank of the true answer among candidates for the gap in a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.calibrate.batching import tokenizer_of
from laconic.calibrate.corpus import Corpus, Example, content
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import MAX_COMPARED_ROWS, EvalTask, TaskResult, tokenizer_name
from laconic.evaluate.lama.cloze import Boundary, Vocabulary, questions, ranks
from laconic.evaluate.lama.facts import CORPORA, MASK, corpus_readers
from laconic.evaluate.metrics import Metric, Scores, limit_evenly, macro_weights, weighted_mean
from laconic.files import expand_user
from laconic.model import LanguageModel, ModelTask
from laconic.model.tokens import vocabulary_size
from laconic.progress import Track

ANSWERS, ALL = "answers", "all"
"""The names of vocabularies that are not files."""
RANK, WEIGHT, CORPUS = 0, 1, 2
"""Columns of the table of scores."""
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Lama(EvalTask):
    """Facts of LAMA.

    Args:
        subset: the name of one corpus; None for all corpora in `$LACONIC_DATA`.
        vocabulary: the candidates for a gap: `answers` (the answers of all corpora that are a single token of the
            model), `all` tokens, or the path of a file with one word per line, such as the common vocabularies in
            LAMA's release.

    Reference:
        Petroni et al., EMNLP 2019, https://arxiv.org/abs/1909.01066.
    """

    prefix = "lama"
    spellings = ("lama", *(f"lama/{name}" for name in CORPORA))
    kinds = (ModelTask.MASKED, ModelTask.CAUSAL, ModelTask.SEQ2SEQ)

    subset: str | None = None
    vocabulary: str = ANSWERS

    @classmethod
    def from_name(cls, name: str) -> "Lama":
        """The task `lama[/CORPUS][:VOCABULARY]`.

        Raises:
            UserError: there is no such corpus.
        """
        task, _, vocabulary = name.partition(":")
        subset = task[len(cls.prefix) :].strip("/").lower().replace("-", "_")
        if subset and subset not in CORPORA:
            raise unknown("task", task, cls.spellings)
        return cls(subset or None, vocabulary or ANSWERS)

    @property
    def name(self) -> str:
        return self.source if self.vocabulary == ANSWERS else f"{self.source}:{self.vocabulary}"

    @property
    def source(self) -> str:
        return "lama" if self.subset is None else f"lama/{self.subset}"

    def check_data(self) -> None:
        """Raise UserError if files are missing. `.jsonl` files of facts are read; the files of the release are not."""
        self._available_corpora(list(corpus_readers()))
        if self.vocabulary not in (ANSWERS, ALL):
            _vocabulary_file(self.vocabulary)

    def load_corpus(self, limit: int | None) -> Corpus:
        """The facts, in the order of the corpora, relations and files.

        Args:
            limit: the largest number of facts, spread evenly over the relations; None for all.

        Returns:
            A corpus whose `classes` are the candidates for a gap; empty if all tokens are candidates.
        """
        found = corpus_readers()
        names = self._available_corpora(list(found))
        everything = {name: read() for name, read in found.items() if name in names or self.vocabulary == ANSWERS}
        rows = tuple(example for name in names for example in everything[name])
        words = self._candidate_words([example for examples in everything.values() for example in examples])
        return limit_evenly(Corpus(self.source, "test", rows, words), limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Up to `MAX_COMPARED_ROWS` sentences, evenly over the relations, with their answers in the gaps."""
        answerable = replace(corpus, examples=tuple(row for row in corpus.examples if row.text), classes=())
        rows = limit_evenly(answerable, MAX_COMPARED_ROWS).examples
        return replace(answerable, examples=tuple(Example(row.text.replace(MASK, row.target or "")) for row in rows))

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model.

        The table has three columns: the rank of the answer, the weight of the row, and the index of the corpus.
        """
        self.check_model(lm)
        answers = [answer for row in corpus.examples for answer in (row.target or "", *row.also)]
        words = None if self.vocabulary == ALL else corpus.classes
        vocabulary = Vocabulary.of(tokenizer_of(lm), answers, words)
        asked_questions, left_out = questions(lm, corpus.examples, vocabulary)
        if not asked_questions:
            reasons = ", ".join(f"{rows} rows: {reason}" for reason, rows in left_out.items())
            raise UserError(
                f"The model '{lm.source}' can be asked nothing of '{self.name}' ({reasons}); use one whose tokenizer "
                "has words for tokens."
            )
        places = tuple(question.index for question in asked_questions)
        groups = [corpus.examples[at].group for at in places]
        corpus_of = [group.partition("/")[0] for group in groups]
        names = list(dict.fromkeys(corpus_of))
        numbers = [names.index(name) for name in corpus_of]
        answer_ranks = ranks(lm, asked_questions, vocabulary, track, self.name)
        table = torch.stack((answer_ranks.double(), macro_weights(groups), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "vocabulary": self.vocabulary,
            "candidates": _n_candidates(vocabulary, lm),
            "left_out": left_out,
            "other_answers": "no candidates",
            "tokenizer": tokenizer_name(lm),
            "relations": _relation_scores(groups, answer_ranks),
        }
        return TaskResult(table, self.metrics(settings), settings, places)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # `relations` is in the order of the rows, and so are the indices of the corpora.
        return _metrics(list(dict.fromkeys(relation.partition("/")[0] for relation in settings["relations"])))

    def _available_corpora(self, found: Sequence[str]) -> list[str]:
        """The corpora in `found` that this task uses."""
        names = [name for name in CORPORA if name in found]
        if self.subset is None:
            return names
        if self.subset not in names:
            present = ", ".join(f"lama/{name}" for name in names)
            raise UserError(
                f"There is no {CORPORA[self.subset]} in the folder 'lama' of LACONIC_DATA; it has {present}: name one "
                f"of them, or put {CORPORA[self.subset]} of LAMA's release there."
            )
        return [self.subset]

    def _candidate_words(self, facts: Sequence[Example]) -> tuple[str, ...]:
        if self.vocabulary == ALL:
            return ()
        if self.vocabulary == ANSWERS:
            return tuple(dict.fromkeys(example.target or "" for example in facts))
        path = _vocabulary_file(self.vocabulary)
        words = tuple(dict.fromkeys(line.strip() for line in content(path).split("\n") if line.strip()))
        if not words:
            raise UserError(f"The vocabulary '{path}' has no words; give a file of one word a line.")
        return words


def _vocabulary_file(name: str) -> Path:
    data = data_folder()
    places = [expand_user(name), *([data / name, data / "lama" / name] if data else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"There is no vocabulary '{name}' here or in LACONIC_DATA; give a file of one word a line, '{ALL}' for all "
            f"tokens, or '{ANSWERS}' for the answers of LAMA."
        )
    return found


def _metrics(corpora: Sequence[str]) -> dict[str, Metric]:
    """The metrics over all facts, and over each corpus if there are several."""
    figures = {f"p@{depth}": partial(_precision, depth=depth) for depth in DEPTHS} | {"mrr": _reciprocal_rank}
    overall = {name: weighted_mean(figure, WEIGHT) for name, figure in figures.items()}
    if len(corpora) == 1:
        return overall
    return overall | {
        f"{name}/{corpus}": weighted_mean(figure, WEIGHT, (CORPUS, number))
        for number, corpus in enumerate(corpora)
        for name, figure in figures.items()
    }


def _precision(table: Scores, depth: int) -> Float[np.ndarray, " rows"]:
    return (table[:, RANK] <= depth).astype(float)


def _reciprocal_rank(table: Scores) -> Float[np.ndarray, " rows"]:
    return 1 / table[:, RANK]


def _relation_scores(groups: Sequence[str], found: Int[Tensor, " rows"]) -> dict[str, dict[str, Any]]:
    """The number of rows and the P@1 of each relation."""
    first: dict[str, list[bool]] = {}
    for group, rank in zip(groups, found.tolist(), strict=True):
        first.setdefault(group, []).append(rank == 1)
    return {group: {"rows": len(hits), "p@1": sum(hits) / len(hits)} for group, hits in first.items()}


def _n_candidates(vocabulary: Vocabulary, lm: LanguageModel) -> int:
    """The number of candidates after a space."""
    if vocabulary.candidates is None:
        return vocabulary_size(lm.model)
    return len(vocabulary.candidates[Boundary.SPACED])
