"""LAMA as an evaluation task: the rank of the true answer among candidates for the gap in a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from laconic.calibrate.corpus import Corpus, Example, read_text
from laconic.calibrate.row import tokenizer_of
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import MAX_COMPARED_ROWS, EvalTask, TaskResult, tokenizer_name
from laconic.evaluate.lama.cloze import Boundary, Vocabulary, questions, ranks
from laconic.evaluate.lama.facts import CORPORA, MASK, corpus_readers
from laconic.evaluate.metrics import Metric, RowFunction, limit_evenly, macro_weights, means_by_group, metrics_by_group
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
        readers = corpus_readers()
        names = self._available_corpora(list(readers))
        facts = {name: read() for name, read in readers.items() if name in names or self.vocabulary == ANSWERS}
        rows = tuple(example for name in names for example in facts[name])
        words = self._candidate_words([example for examples in facts.values() for example in examples])
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
        answers = [answer for row in corpus.examples for answer in (row.target or "", *row.other_targets)]
        words = None if self.vocabulary == ALL else corpus.classes
        vocabulary = Vocabulary.of(tokenizer_of(lm), answers, words)
        lama_questions, left_out = questions(lm, corpus.examples, vocabulary)
        if not lama_questions:
            reasons = ", ".join(f"{rows} rows: {reason}" for reason, rows in left_out.items())
            raise UserError(
                f"No fact of '{self.name}' is a question for the model '{lm.source}' ({reasons}); use one whose "
                "tokenizer has words for tokens."
            )
        indices = tuple(question.index for question in lama_questions)
        groups = [corpus.examples[index].group for index in indices]
        corpus_of = [group.partition("/")[0] for group in groups]
        names = list(dict.fromkeys(corpus_of))
        numbers = [names.index(name) for name in corpus_of]
        answer_ranks = ranks(lm, lama_questions, vocabulary, track, self.name)
        table = torch.stack((answer_ranks.double(), macro_weights(groups), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "vocabulary": self.vocabulary,
            "candidates": vocabulary_size(lm.model)
            if vocabulary.candidates is None
            else len(vocabulary.candidates[Boundary.SPACED]),
            "left_out": left_out,
            "other_answers": "no candidates",
            "tokenizer": tokenizer_name(lm),
            "relations": {
                relation: {"rows": rows, "p@1": precision}
                for relation, (rows, precision) in means_by_group(groups, (answer_ranks == 1).tolist()).items()
            },
        }
        return TaskResult(table, self.metrics(settings), settings, indices)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # `relations` is in the order of the rows, and so are the indices of the corpora.
        corpora = list(dict.fromkeys(relation.partition("/")[0] for relation in settings["relations"]))
        values: dict[str, RowFunction] = {
            f"p@{depth}": lambda table, depth=depth: (table[:, RANK] <= depth).astype(float) for depth in DEPTHS
        }
        return metrics_by_group(values | {"mrr": lambda table: 1 / table[:, RANK]}, WEIGHT, CORPUS, corpora)

    def _available_corpora(self, present: Sequence[str]) -> list[str]:
        """The corpora that this task uses, of those that are present."""
        names = [name for name in CORPORA if name in present]
        if self.subset is None:
            return names
        if self.subset not in names:
            available = ", ".join(f"lama/{name}" for name in names)
            raise UserError(
                f"There is no {CORPORA[self.subset]} in the folder 'lama' of LACONIC_DATA; it has {available}: name "
                f"one of them, or put {CORPORA[self.subset]} of LAMA's release there."
            )
        return [self.subset]

    def _candidate_words(self, facts: Sequence[Example]) -> tuple[str, ...]:
        if self.vocabulary == ALL:
            return ()
        if self.vocabulary == ANSWERS:
            return tuple(dict.fromkeys(example.target or "" for example in facts))
        path = _vocabulary_file(self.vocabulary)
        words = tuple(dict.fromkeys(line.strip() for line in read_text(path).split("\n") if line.strip()))
        if not words:
            raise UserError(f"The vocabulary '{path}' has no words; give a file of one word a line.")
        return words


def _vocabulary_file(name: str) -> Path:
    data = data_folder()
    paths = [expand_user(name), *([data / name, data / "lama" / name] if data else [])]
    file = next((path for path in paths if path.is_file()), None)
    if file is None:
        raise UserError(
            f"There is no vocabulary '{name}' here or in LACONIC_DATA; give a file of one word a line, '{ALL}' for all "
            f"tokens, or '{ANSWERS}' for the answers of LAMA."
        )
    return file
