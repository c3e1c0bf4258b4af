"""The rank of the true answer of each fact among the words that could fill its gap."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.calibrate.batching import Row, positions
from laconic.calibrate.corpus import Example
from laconic.evaluate.eval_task import by_length
from laconic.evaluate.lama.cloze import Writer, fills_sentinels, writer
from laconic.evaluate.lama.facts import MASK
from laconic.evaluate.lama.vocabulary import Place, Vocabulary
from laconic.evaluate.masked_logits import predicted_where_counted
from laconic.model import LanguageModel
from laconic.progress import Track

BATCH = 32
LONGEST = 100
"""Words of a sentence at most, as in the paper's code."""


@dataclass(frozen=True)
class Question:
    """One fact as a row: `at`, its place in the corpus, the token of its answer, and the tokens that are as right."""

    at: int
    row: Row
    place: Place
    answer: int
    also: tuple[int, ...]


def questions(
    lm: LanguageModel, facts: Sequence[Example], vocabulary: Vocabulary
) -> tuple[list[Question], dict[str, int]]:
    """What `lm` can be asked, and how many facts it cannot, by reason."""
    write, behind_sentinel, longest = writer(lm), fills_sentinels(lm), positions(lm)
    asked: list[Question] = []
    left_out: Counter[str] = Counter()
    for at, fact in enumerate(facts):
        # Behind a sentinel every word is as after a space.
        before = "a " if behind_sentinel else fact.text.partition(MASK)[0]
        found = _question(at, fact, Place.after(before), vocabulary, write)
        if isinstance(found, Question) and longest is not None and _tokens(found.row) > longest:
            found = "longer than the model reads"
        if isinstance(found, Question):
            asked.append(found)
        else:
            left_out[found] += 1
    return asked, dict(sorted(left_out.items()))


def _question(at: int, fact: Example, place: Place, vocabulary: Vocabulary, write: Writer) -> Question | str:
    """The question, or why there is none."""
    if MASK not in fact.text:
        return "no sentence with a gap"
    if len(fact.text.split()) > LONGEST:
        return f"over {LONGEST} words"
    tokens = vocabulary.tokens[place]
    answer = tokens.get(fact.target or "")
    if answer is None:
        return "answer not one token"
    if not vocabulary.competes(answer, place):
        return "answer not in the vocabulary"
    row = write(fact.text, answer)
    if row is None:
        return "nothing before the gap"
    return Question(at, row, place, answer, tuple({tokens[other] for other in fact.also if other in tokens} - {answer}))


def _tokens(row: Row) -> int:
    """Of the longer of the texts that are read and written."""
    return max(len(row.input_ids), len(row.labels) if isinstance(row.labels, list) else 0)


def ranks(
    lm: LanguageModel, asked: Sequence[Question], vocabulary: Vocabulary, track: Track, what: str
) -> Int[Tensor, " questions"]:
    """The rank of each answer, from 1; a candidate that is as likely comes before it, one that is as right does not."""
    parts, data = by_length(lm, [question.row for question in asked], BATCH)
    found = torch.zeros(len(asked), dtype=torch.long)
    for part, (_, predictions) in zip(parts, predicted_where_counted(lm, data, track, what), strict=True):
        last = predictions.rows.bincount(minlength=len(part)).cumsum(0) - 1
        for at, scores in zip(part, predictions.values[last], strict=True):
            found[at] = rank(scores, asked[at], vocabulary)
    return found


def rank(scores: Float[Tensor, " tokens"], asked: Question, vocabulary: Vocabulary) -> int:
    """The filtered rank (Bordes et al. 2013, as in the paper): among the candidates without other right answers."""
    candidates = None if vocabulary.candidates is None else vocabulary.candidates[asked.place]
    rivals = scores if candidates is None else scores[candidates]
    # The answer is a candidate itself, so that the first of them has rank 1.
    before = int((rivals >= scores[asked.answer]).sum())
    right = [token for token in asked.also if vocabulary.competes(token, asked.place)]
    return before - int((scores[right] >= scores[asked.answer]).sum()) if right else before
