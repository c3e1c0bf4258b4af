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
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.batching import max_positions
from laconic.calibrate.corpus import Example
from laconic.calibrate.row import IGNORED, Row, tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.lama.facts import MASK
from laconic.evaluate.prediction import batch_by_length, predict_batches
from laconic.evaluate.windows import start_token
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


def single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], boundary: Boundary) -> dict[str, int]:
    """The words that are a single token after a boundary, with this token. Unknown words are left out.

    A byte-pair or SentencePiece tokenizer encodes `Paris` differently after a space and after a bracket. The tokens of
    a word are therefore the additional tokens of the text with the word.

    Args:
        tokenizer: the tokenizer of the model.
        words: the words to look up.
        boundary: the boundary before the words.
    """
    before, gap = boundary.value
    texts = [before, *(before + gap + word for word in words)]
    first, *ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
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
        answers = list(dict.fromkeys(answers))
        tokens = {boundary: single_tokens(tokenizer, answers, boundary) for boundary in Boundary}
        if words is None:
            return cls(tokens, None)
        candidates = {
            boundary: torch.tensor(sorted(set(single_tokens(tokenizer, words, boundary).values())), dtype=torch.long)
            for boundary in Boundary
        }
        return cls(tokens, candidates)

    def competes(self, token: int, boundary: Boundary) -> bool:
        """Whether a token is a candidate after this boundary."""
        return self.candidates is None or bool((self.candidates[boundary] == token).any())


SENTINEL = "<extra_id_{}>"

RowBuilder = Callable[[LanguageModel, str, int], Row | None]
"""Maps a model, a sentence and the token of the answer to a row; None if a causal model has no text before the gap."""


def row_builder(lm: LanguageModel) -> RowBuilder:
    """The function that converts a sentence with a gap to a row, for the kind of a model.

    Args:
        lm: the model, with its tokenizer.

    Raises:
        UserError: the model has no tokenizer, or the tokenizer has no mask or sentinel token.
    """
    if lm.task is ModelTask.CAUSAL:
        return _causal_row
    if uses_sentinels(lm):
        return partial(_sentinel_row, first=tokenizer_of(lm).get_vocab()[SENTINEL.format(0)])
    if not isinstance(tokenizer_of(lm).mask_token_id, int) or lm.target_tokenizer is not None:
        raise UserError(
            f"The model '{lm.source}' cannot fill gaps: its tokenizer has no mask token; use a model that was trained "
            "to fill them."
        )
    return _infilling_row if lm.task is ModelTask.SEQ2SEQ else _masked_row


def uses_sentinels(lm: LanguageModel) -> bool:
    """Whether the model is an encoder-decoder whose tokenizer has T5's sentinel tokens."""
    return lm.task is ModelTask.SEQ2SEQ and SENTINEL.format(0) in tokenizer_of(lm).get_vocab()


def _masked_row(lm: LanguageModel, sentence: str, answer: int) -> Row:
    tokenizer = tokenizer_of(lm)
    ids = list(tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"])
    labels = [IGNORED] * len(ids)
    labels[ids.index(tokenizer.mask_token_id)] = answer
    return Row(ids, labels=labels)


def _causal_row(lm: LanguageModel, sentence: str, answer: int) -> Row | None:
    # The space before the gap belongs to the token that fills it.
    text = sentence.partition(MASK)[0].rstrip()
    tokenizer = tokenizer_of(lm)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = [token for token in (start_token(tokenizer), *ids) if token is not None]
    return Row([*ids, answer], labels=[*[IGNORED] * len(ids), answer]) if ids else None


def _sentinel_row(lm: LanguageModel, sentence: str, answer: int, *, first: int) -> Row:
    before, *others = sentence.split(MASK)
    text = before + "".join(SENTINEL.format(number) + part for number, part in enumerate(others))
    return Row(list(tokenizer_of(lm)(text, verbose=False)["input_ids"]), labels=[first, answer])


def _infilling_row(lm: LanguageModel, sentence: str, answer: int) -> Row:
    tokenizer = tokenizer_of(lm)
    ids = tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"]
    prefix: list[int] = list(tokenizer(sentence.partition(MASK)[0].rstrip(), verbose=False)["input_ids"])
    if prefix and prefix[-1] == tokenizer.eos_token_id:
        prefix.pop()
    return Row(list(ids), labels=[*prefix, answer])


BATCH = 32
MAX_WORDS = 100
"""The largest number of words in a sentence, as in the code of the paper."""


@dataclass(frozen=True)
class Question:
    """One fact as a row.

    Args:
        index: the index of the fact in the corpus.
        row: tokens and labels.
        boundary: the boundary before the gap.
        answer: the token of the answer.
        other_answers: the tokens of other right answers.
    """

    index: int
    row: Row
    boundary: Boundary
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
    build, behind_sentinel, longest = row_builder(lm), uses_sentinels(lm), max_positions(lm)
    rows: list[Question] = []
    left_out: Counter[str] = Counter()
    for index, fact in enumerate(facts):
        # After a sentinel, a word is tokenized as after a space.
        boundary = Boundary.after("a " if behind_sentinel else fact.text.partition(MASK)[0])
        tokens = vocabulary.tokens[boundary]
        answer = tokens.get(fact.target or "")
        if MASK not in fact.text:
            left_out["no sentence with a gap"] += 1
        elif len(fact.text.split()) > MAX_WORDS:
            left_out[f"over {MAX_WORDS} words"] += 1
        elif answer is None:
            left_out["answer not one token"] += 1
        elif not vocabulary.competes(answer, boundary):
            left_out["answer not in the vocabulary"] += 1
        elif (row := build(lm, fact.text, answer)) is None:
            left_out["nothing before the gap"] += 1
        elif longest is not None and _n_tokens(row) > longest:
            left_out["longer than the model reads"] += 1
        else:
            others = {tokens[other] for other in fact.other_targets if other in tokens} - {answer}
            rows.append(Question(index, row, boundary, answer, tuple(others)))
    return rows, dict(sorted(left_out.items()))


def _n_tokens(row: Row) -> int:
    """The number of tokens of the input or of the output, whichever is larger."""
    return max(len(row.input_ids), len(row.labels) if isinstance(row.labels, list) else 0)


def ranks(
    lm: LanguageModel, rows: Sequence[Question], vocabulary: Vocabulary, track: Track, label: str
) -> Int[Tensor, " questions"]:
    """The rank of each answer among the candidates.

    Args:
        lm: the model.
        rows: questions.
        vocabulary: the candidates.
        track: shows progress.
        label: the name of the task, for progress.

    Returns:
        (questions,) ranks from 1. Candidates as likely as the answer rank before it; other right answers do not count.
    """
    parts, data = batch_by_length(lm, [question.row for question in rows], BATCH)
    answer_ranks = torch.zeros(len(rows), dtype=torch.long)
    predicted = predict_batches(lm, data, track, label, labelled_only=True)
    for part, (_, predictions) in zip(parts, predicted, strict=True):
        last = predictions.rows.bincount(minlength=len(part)).cumsum(0) - 1
        for index, scores in zip(part, predictions.values[last], strict=True):
            answer_ranks[index] = rank(scores, rows[index], vocabulary)
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
    candidates = None if vocabulary.candidates is None else vocabulary.candidates[question.boundary]
    rivals = scores if candidates is None else scores[candidates]
    # The answer itself is among the rivals, so that the lowest rank is 1.
    before = int((rivals >= scores[question.answer]).sum())
    other_answers = [token for token in question.other_answers if vocabulary.competes(token, question.boundary)]
    return before - int((scores[other_answers] >= scores[question.answer]).sum()) if other_answers else before
