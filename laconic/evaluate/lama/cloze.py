"""LAMA's questions: convert sentences with a gap to inputs of a model, and compute the rank of the true answer.

- A masked model reads the sentence with the mask token in the gap.
- A causal model reads the start token and the text before the gap, and predicts the next token (Petroni et al. 2019).
- An encoder-decoder with sentinel tokens writes the first sentinel and the answer (T5, Raffel et al. 2020,
  section 3.1.4).
- An encoder-decoder with a mask token writes the sentence; the decoder is given the text before the gap (infilling of
  BART, Lewis et al. 2020, section 2.2).

A sentence with several gaps is scored at the first one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.batching import IGNORED, Row, positions, tokenizer_of
from laconic.calibrate.corpus import Example
from laconic.errors import UserError
from laconic.evaluate.lama.facts import MASK
from laconic.evaluate.perplexity import start_token
from laconic.evaluate.prediction import batch_by_length, predict_labelled
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track


class Boundary(Enum):
    """The kind of text before a word, which affects its tokens.

    Values are pairs: a text whose tokens do not depend on the following text, and the separator before the word.
    """

    START = ("", "")
    SPACED = ("a", " ")
    JOINED = ("(", "")

    @classmethod
    def after(cls, text: str) -> "Boundary":
        """The boundary before a word that follows `text`."""
        if not text.strip():
            return cls.START
        return cls.SPACED if text[-1].isspace() else cls.JOINED


def single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], place: Boundary) -> dict[str, int]:
    """The words that are a single token after a boundary, with this token. Unknown words are left out.

    A byte-pair or SentencePiece tokenizer encodes `Paris` differently after a space and after a bracket. The tokens of
    a word are therefore the additional tokens of the text with the word.

    Args:
        tokenizer: the tokenizer of the model.
        words: the words to look up.
        place: the boundary before the words.
    """
    before, gap = place.value
    found = tokenizer([before, *(before + gap + word for word in words)], add_special_tokens=False, verbose=False)
    first, *ids = found["input_ids"]
    return {
        word: tokens[-1]
        for word, tokens in zip(words, ids, strict=True)
        if len(tokens) == len(first) + 1 and tokens[:-1] == first and tokens[-1] != tokenizer.unk_token_id
    }


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that can fill a gap, for each boundary before the gap.

    Args:
        tokens: the token of each answer that is a single token.
        candidates: (words,) the tokens that the answer is ranked among, in rising order; None for all tokens.
    """

    tokens: Mapping[Boundary, Mapping[str, int]]
    candidates: Mapping[Boundary, Int[Tensor, " words"]] | None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], words: Sequence[str] | None
    ) -> "Vocabulary":
        """Look up answers and candidates in a tokenizer.

        Args:
            tokenizer: the tokenizer of the model.
            answers: all answers.
            words: the candidate words; None for all tokens.
        """
        tokens = {place: single_tokens(tokenizer, list(dict.fromkeys(answers)), place) for place in Boundary}
        if words is None:
            return cls(tokens, None)
        candidates = {place: sorted(set(single_tokens(tokenizer, words, place).values())) for place in Boundary}
        return cls(tokens, {place: torch.tensor(numbers, dtype=torch.long) for place, numbers in candidates.items()})

    def competes(self, token: int, place: Boundary) -> bool:
        """Whether a token is a candidate after this boundary."""
        return self.candidates is None or bool((self.candidates[place] == token).any())


SENTINEL = "<extra_id_{}>"

RowBuilder = Callable[[str, int], Row | None]
"""Maps a sentence and the token of the answer to a row; None if a causal model has no text before the gap."""


def row_builder(lm: LanguageModel) -> RowBuilder:
    """The function that converts a sentence with a gap to a row, for the kind of a model.

    Args:
        lm: the model, with its tokenizer.

    Raises:
        UserError: the model has no tokenizer, or the tokenizer has no mask or sentinel token.
    """
    if lm.task is ModelTask.CAUSAL:
        return _causal_rows(lm)
    if uses_sentinels(lm):
        return _sentinel_rows(lm)
    mask = tokenizer_of(lm).mask_token_id
    if not isinstance(mask, int) or lm.target_tokenizer is not None:
        raise UserError(
            f"The model '{lm.source}' cannot be asked with gaps: its tokenizer has no token that stands for one; use a "
            "model that was trained to fill them."
        )
    return _infilling_rows(lm) if lm.task is ModelTask.SEQ2SEQ else _masked_rows(lm, mask)


def uses_sentinels(lm: LanguageModel) -> bool:
    """Whether the model is an encoder-decoder whose tokenizer has T5's sentinel tokens."""
    return lm.task is ModelTask.SEQ2SEQ and SENTINEL.format(0) in tokenizer_of(lm).get_vocab()


def _masked_rows(lm: LanguageModel, mask: int) -> RowBuilder:
    tokenizer = tokenizer_of(lm)

    def write(sentence: str, answer: int) -> Row:
        ids = list(tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"])
        labels = [IGNORED] * len(ids)
        labels[ids.index(mask)] = answer
        return Row(ids, labels=labels)

    return write


def _causal_rows(lm: LanguageModel) -> RowBuilder:
    tokenizer, first = tokenizer_of(lm), start_token(lm)

    def write(sentence: str, answer: int) -> Row | None:
        # The space before the gap belongs to the token that fills it.
        text = sentence.partition(MASK)[0].rstrip()
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for token in (first, *ids) if token is not None]
        return Row([*ids, answer], labels=[*[IGNORED] * len(ids), answer]) if ids else None

    return write


def _sentinel_rows(lm: LanguageModel) -> RowBuilder:
    tokenizer = tokenizer_of(lm)
    first = tokenizer.get_vocab()[SENTINEL.format(0)]

    def write(sentence: str, answer: int) -> Row:
        before, *rest = sentence.split(MASK)
        text = before + "".join(SENTINEL.format(number) + part for number, part in enumerate(rest))
        return Row(list(tokenizer(text, verbose=False)["input_ids"]), labels=[first, answer])

    return write


def _infilling_rows(lm: LanguageModel) -> RowBuilder:
    tokenizer = tokenizer_of(lm)

    def write(sentence: str, answer: int) -> Row:
        ids = tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"]
        written: list[int] = list(tokenizer(sentence.partition(MASK)[0].rstrip(), verbose=False)["input_ids"])
        if written and written[-1] == tokenizer.eos_token_id:
            written.pop()
        return Row(list(ids), labels=[*written, answer])

    return write


BATCH = 32
MAX_WORDS = 100
"""The largest number of words in a sentence, as in the code of the paper."""


@dataclass(frozen=True)
class Question:
    """One fact as a row.

    Args:
        index: the index of the fact in the corpus.
        row: tokens and labels.
        place: the boundary before the gap.
        answer: the token of the answer.
        other_answers: the tokens of other right answers.
    """

    index: int
    row: Row
    place: Boundary
    answer: int
    other_answers: tuple[int, ...]


def questions(
    lm: LanguageModel, facts: Sequence[Example], vocabulary: Vocabulary
) -> tuple[list[Question], dict[str, int]]:
    """Convert facts to questions for a model.

    Args:
        lm: the model, with its tokenizer.
        facts: sentences with a gap, and their answers.
        vocabulary: the vocabulary of the model.

    Returns:
        The questions, and the number of facts that were left out, by reason.
    """
    write, behind_sentinel, longest = row_builder(lm), uses_sentinels(lm), positions(lm)
    rows: list[Question] = []
    left_out: Counter[str] = Counter()
    for at, fact in enumerate(facts):
        # After a sentinel, a word is tokenized as after a space.
        before = "a " if behind_sentinel else fact.text.partition(MASK)[0]
        found = _question(at, fact, Boundary.after(before), vocabulary, write)
        if isinstance(found, Question) and longest is not None and _n_tokens(found.row) > longest:
            found = "longer than the model reads"
        if isinstance(found, Question):
            rows.append(found)
        else:
            left_out[found] += 1
    return rows, dict(sorted(left_out.items()))


def _question(at: int, fact: Example, place: Boundary, vocabulary: Vocabulary, write: RowBuilder) -> Question | str:
    """The question for a fact, or the reason why the fact is left out."""
    if MASK not in fact.text:
        return "no sentence with a gap"
    if len(fact.text.split()) > MAX_WORDS:
        return f"over {MAX_WORDS} words"
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


def _n_tokens(row: Row) -> int:
    """The number of tokens of the input or of the output, whichever is larger."""
    return max(len(row.input_ids), len(row.labels) if isinstance(row.labels, list) else 0)


def ranks(
    lm: LanguageModel, rows: Sequence[Question], vocabulary: Vocabulary, track: Track, what: str
) -> Int[Tensor, " questions"]:
    """The rank of each answer among the candidates.

    Args:
        lm: the model.
        rows: questions.
        vocabulary: the candidates.
        track: shows progress.
        what: the name of the task, for progress.

    Returns:
        (questions,) ranks from 1. Candidates as likely as the answer rank before it; other right answers do not count.
    """
    parts, data = batch_by_length(lm, [question.row for question in rows], BATCH)
    answer_ranks = torch.zeros(len(rows), dtype=torch.long)
    for part, (_, predictions) in zip(parts, predict_labelled(lm, data, track, what), strict=True):
        last = predictions.rows.bincount(minlength=len(part)).cumsum(0) - 1
        for at, scores in zip(part, predictions.values[last], strict=True):
            answer_ranks[at] = rank(scores, rows[at], vocabulary)
    return answer_ranks


def rank(scores: Float[Tensor, " tokens"], question: Question, vocabulary: Vocabulary) -> int:
    """The filtered rank (Bordes et al. 2013) of the answer: among the candidates without other right answers.

    Args:
        scores: (tokens,) logits or log-probabilities.
        question: the question.
        vocabulary: the candidates.

    Returns:
        The rank, from 1.
    """
    candidates = None if vocabulary.candidates is None else vocabulary.candidates[question.place]
    rivals = scores if candidates is None else scores[candidates]
    # The answer itself is among the rivals, so that the lowest rank is 1.
    before = int((rivals >= scores[question.answer]).sum())
    other_answers = [token for token in question.other_answers if vocabulary.competes(token, question.place)]
    return before - int((scores[other_answers] >= scores[question.answer]).sum()) if other_answers else before
