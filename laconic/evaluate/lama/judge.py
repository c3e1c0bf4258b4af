"""LAMA as a task: `lama`, or one of its corpora, over the common vocabulary, a given one, or all tokens."""

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
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.sources import data_folder
from laconic.calibrate.sources.records import content
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import COMPARED, EvalTask, Judged, tokenizer_name
from laconic.evaluate.intervals import Metric, Table
from laconic.evaluate.lama.facts import CORPORA, MASK, readers
from laconic.evaluate.lama.probe import questions, ranks
from laconic.evaluate.lama.vocabulary import Place, Vocabulary
from laconic.evaluate.macro import evenly, shares, weighted
from laconic.model import LanguageModel, Task
from laconic.model.tokens import vocabulary_size
from laconic.paths import expanded
from laconic.progress import Track

LAMA_NAMES = ("lama", *(f"lama/{name}" for name in CORPORA))
ANSWERS, ALL = "answers", "all"
"""Vocabularies that need no file."""
RANK, WEIGHT, CORPUS = 0, 1, 2
"""Columns of the table."""
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Lama(EvalTask):
    """Facts of one corpus, or of every one that is there if None.

    vocabulary: what competes with an answer: `answers` (of all of LAMA that is there; those that are one token of the
                model, so that the same words compete whichever corpus is asked), `all` tokens, or a file of a word a
                line, as the common vocabularies of LAMA's release are.
    """

    kinds = (Task.MASKED, Task.CAUSAL, Task.SEQ2SEQ)

    subset: str | None = None
    vocabulary: str = ANSWERS

    @property
    def name(self) -> str:
        return self.source if self.vocabulary == ANSWERS else f"{self.source}:{self.vocabulary}"

    @property
    def source(self) -> str:
        return "lama" if self.subset is None else f"lama/{self.subset}"

    def check(self) -> None:
        """Raise UserError where `corpus` would for what is missing; files of facts are read, the release is not."""
        self._here(list(readers()))
        if self.vocabulary not in (ANSWERS, ALL):
            _vocabulary_file(self.vocabulary)

    def corpus(self, limit: int | None) -> Corpus:
        """The facts, in the order of the corpora, relations and files; `limit` of them evenly over the relations.

        `classes` are the words that may fill a gap; empty where any token may.
        """
        found = readers()
        names = self._here(list(found))
        everything = {name: read() for name, read in found.items() if name in names or self.vocabulary == ANSWERS}
        rows = tuple(example for name in names for example in everything[name])
        words = self._words([example for examples in everything.values() for example in examples])
        return evenly(Corpus(self.source, "test", rows, words), limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Up to `COMPARED` sentences, evenly over the relations, with their answers in the gaps."""
        asked = replace(corpus, examples=tuple(row for row in corpus.examples if row.text), classes=())
        rows = evenly(asked, COMPARED).examples
        return replace(asked, examples=tuple(Example(row.text.replace(MASK, row.target or "")) for row in rows))

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has the rank of the answer, the weight in the mean of means, and the number of the corpus."""
        self.refuse(lm)
        answers = [answer for row in corpus.examples for answer in (row.target or "", *row.also)]
        words = None if self.vocabulary == ALL else corpus.classes
        vocabulary = Vocabulary.of(tokenizer_of(lm), answers, words)
        asked, left_out = questions(lm, corpus.examples, vocabulary)
        if not asked:
            reasons = ", ".join(f"{rows} rows: {reason}" for reason, rows in left_out.items())
            raise UserError(
                f"The model '{lm.source}' can be asked nothing of '{self.name}' ({reasons}); use one whose tokenizer "
                "has words for tokens."
            )
        places = tuple(question.at for question in asked)
        groups = [corpus.examples[at].group for at in places]
        corpus_of = [group.partition("/")[0] for group in groups]
        names = list(dict.fromkeys(corpus_of))
        numbers = [names.index(name) for name in corpus_of]
        found = ranks(lm, asked, vocabulary, track, self.name)
        table = torch.stack((found.double(), shares(groups), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "vocabulary": self.vocabulary,
            "candidates": _size(vocabulary, lm),
            "left_out": left_out,
            "other_answers": "no candidates",
            "tokenizer": tokenizer_name(lm),
            "relations": _by_relation(groups, found),
        }
        return Judged(table, self.metrics(settings), settings, places)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # Relations are told in the order of the rows, and so are the numbers of the corpora.
        return _metrics(list(dict.fromkeys(relation.partition("/")[0] for relation in settings["relations"])))

    def _here(self, found: Sequence[str]) -> list[str]:
        """The corpora to ask, of those that were found."""
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

    def _words(self, facts: Sequence[Example]) -> tuple[str, ...]:
        if self.vocabulary == ALL:
            return ()
        if self.vocabulary == ANSWERS:
            return tuple(dict.fromkeys(example.target or "" for example in facts))
        path = _vocabulary_file(self.vocabulary)
        words = tuple(dict.fromkeys(line.strip() for line in content(path).split("\n") if line.strip()))
        if not words:
            raise UserError(f"The vocabulary '{path}' has no words; give a file of one word a line.")
        return words


def lama_task(name: str) -> Lama:
    """The task of this name: `lama[/CORPUS][:VOCABULARY]`.

    Raises:
        UserError: no such corpus.
    """
    task, _, vocabulary = name.partition(":")
    subset = task[len("lama") :].strip("/").lower().replace("-", "_")
    if subset and subset not in CORPORA:
        raise unknown("task", task, LAMA_NAMES)
    return Lama(subset or None, vocabulary or ANSWERS)


def _vocabulary_file(name: str) -> Path:
    data = data_folder()
    places = [expanded(name), *([data / name, data / "lama" / name] if data else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"There is no vocabulary '{name}' here or in LACONIC_DATA; give a file of one word a line, '{ALL}' for all "
            f"tokens, or '{ANSWERS}' for the answers of LAMA."
        )
    return found


def _metrics(corpora: Sequence[str]) -> dict[str, Metric]:
    """Of all, and of each corpus where there are several."""
    figures = {f"p@{depth}": partial(_among_first, depth=depth) for depth in DEPTHS} | {"mrr": _reciprocal}
    overall = {name: weighted(figure, WEIGHT) for name, figure in figures.items()}
    if len(corpora) == 1:
        return overall
    return overall | {
        f"{name}/{corpus}": weighted(figure, WEIGHT, (CORPUS, number))
        for number, corpus in enumerate(corpora)
        for name, figure in figures.items()
    }


def _among_first(table: Table, depth: int) -> Float[np.ndarray, " rows"]:
    return (table[:, RANK] <= depth).astype(float)


def _reciprocal(table: Table) -> Float[np.ndarray, " rows"]:
    return 1 / table[:, RANK]


def _by_relation(groups: Sequence[str], found: Int[Tensor, " rows"]) -> dict[str, dict[str, Any]]:
    """Rows and P@1 of each."""
    first: dict[str, list[bool]] = {}
    for group, rank in zip(groups, found.tolist(), strict=True):
        first.setdefault(group, []).append(rank == 1)
    return {group: {"rows": len(hits), "p@1": sum(hits) / len(hits)} for group, hits in first.items()}


def _size(vocabulary: Vocabulary, lm: LanguageModel) -> int:
    """Words that compete after a space."""
    if vocabulary.candidates is None:
        return vocabulary_size(lm.model)
    return len(vocabulary.candidates[Place.SPACED])
