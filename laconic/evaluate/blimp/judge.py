"""BLiMP as a task: `blimp`, or the paradigms that a name or a glob stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.blimp.pairs import files, pairs
from laconic.evaluate.blimp.phenomena import PHENOMENON, paradigms
from laconic.evaluate.blimp.scores import log_probabilities
from laconic.evaluate.eval_task import COMPARED, EvalTask, Judged, tokenizer_name
from laconic.evaluate.intervals import Metric, Table
from laconic.evaluate.macro import evenly, shares, weighted
from laconic.model import LanguageModel, Task
from laconic.progress import Track

RIGHT, WEIGHT, NUMBER = 0, 1, 2
"""Columns of the table; the last is the number of the phenomenon."""


@dataclass(frozen=True)
class Blimp(EvalTask):
    """The minimal pairs of the paradigms that `pattern` stands for, or of all if None.

    An encoder-decoder says how probable a sentence is given another; there is none here, so it is no model for this.
    """

    kinds = (Task.CAUSAL, Task.MASKED)

    pattern: str | None = None

    @property
    def name(self) -> str:
        return self.source

    @property
    def source(self) -> str:
        return "blimp" if self.pattern is None else f"blimp/{self.pattern}"

    def check(self) -> None:
        files()

    def corpus(self, limit: int | None) -> Corpus:
        """The pairs, `limit` of them evenly over the paradigms."""
        wanted = tuple(PHENOMENON) if self.pattern is None else paradigms(self.pattern)
        return evenly(Corpus(self.source, "test", tuple(pairs(wanted))), limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Up to `COMPARED` acceptable sentences, evenly over the paradigms."""
        rows = evenly(corpus, COMPARED).examples
        return replace(corpus, examples=tuple(Example(row.text) for row in rows))

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has 1 where the acceptable sentence is the more probable one, the weight of the pair in the mean
        over paradigms, and the number of its phenomenon."""
        self.refuse(lm)
        sentences = [sentence for row in corpus.examples for sentence in (row.text, row.pair or "")]
        good, bad = log_probabilities(lm, sentences, track, self.name).reshape(-1, 2).T
        places = tuple((good.isfinite() & bad.isfinite()).nonzero()[:, 0].tolist())
        if not places:
            raise UserError(
                f"The model '{lm.source}' can read no pair of '{self.name}'; use one that reads longer sentences."
            )
        right = (good > bad)[list(places)].double()
        paradigm_of = [corpus.examples[at].group.partition("/")[2] for at in places]
        phenomenon_of = [PHENOMENON[paradigm] for paradigm in paradigm_of]
        names = list(dict.fromkeys(phenomenon_of))
        numbers = [names.index(phenomenon) for phenomenon in phenomenon_of]
        table = torch.stack((right, shares(paradigm_of), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "score": "log-probability" if lm.task is Task.CAUSAL else "pseudo-log-likelihood",
            "left_out": len(good) - len(places),
            "tokenizer": tokenizer_name(lm),
            "paradigms": _by_paradigm(paradigm_of, table[:, RIGHT]),
        }
        return Judged(table, self.metrics(settings), settings, places)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # Paradigms are told in the order of the rows, and so are the numbers of the phenomena.
        return _metrics(list(dict.fromkeys(PHENOMENON[paradigm] for paradigm in settings["paradigms"])))


def blimp_task(name: str) -> Blimp:
    """The task of this name: `blimp[/PATTERN]`.

    Raises:
        UserError: no phenomenon and no paradigm is called so.
    """
    pattern = name[len("blimp") :].strip("/:")
    if pattern:
        paradigms(pattern)
    return Blimp(pattern or None)


def _metrics(phenomena: Sequence[str]) -> dict[str, Metric]:
    """Of all paradigms, and of those of each phenomenon where there are several."""
    overall = {"accuracy": weighted(_right, WEIGHT)}
    if len(phenomena) == 1:
        return overall
    return overall | {
        f"accuracy/{name}": weighted(_right, WEIGHT, (NUMBER, number)) for number, name in enumerate(phenomena)
    }


def _right(table: Table) -> Float[np.ndarray, " rows"]:
    return table[:, RIGHT]


def _by_paradigm(paradigm_of: Sequence[str], right: Float[np.ndarray, " rows"]) -> dict[str, Any]:
    """Pairs and accuracy of each."""
    hits: dict[str, list[float]] = {}
    for paradigm, hit in zip(paradigm_of, right.tolist(), strict=True):
        hits.setdefault(paradigm, []).append(hit)
    return {paradigm: {"pairs": len(found), "accuracy": sum(found) / len(found)} for paradigm, found in hits.items()}
