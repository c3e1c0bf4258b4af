"""A context is read in windows that overlap; the answer is at its tokens, or at the first token of the row."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from laconic.calibrate.batching import batches, tokenize_rows
from laconic.calibrate.corpus import Answer, Corpus, Example
from laconic.calibrate.question_answering import windows
from laconic.errors import UserError
from laconic.model import LanguageModel, predict
from tests.task_models import ANSWER, TASK_MODELS
from tests.tokens import letters

QUESTION, CONTEXT = "who ran", "a man and ada lovelace ran to the end of it"
ADA = Answer("ada", 10)


def lm_of(family: str = "bert", special: str = "pair") -> LanguageModel:
    return replace(TASK_MODELS[f"{family}-{ANSWER.value}"].lm(), tokenizer=letters(special))


def corpus_of(*examples: Example) -> Corpus:
    return Corpus("questions", "train", examples)


def ask(*answers: Answer, context: str = CONTEXT) -> Example:
    return Example(QUESTION, context, answers=answers)


def test_windows_cover_the_context_and_overlap():
    lm, longest = lm_of(), 30
    found = windows(lm, letters(), ask(), longest)
    places = [[place for place in window.places if place != (0, 0)] for window in found]
    assert {place for part in places for place in part} == {(at, at + 1) for at in range(len(CONTEXT))}
    assert all(len(window.row.input_ids) <= longest for window in found)
    overlaps = [len(set(one) & set(two)) for one, two in pairwise(places)]
    assert len(found) > 2 and set(overlaps) == {10}
    for window in found:
        texts = [CONTEXT[begin:end] for begin, end in window.places]
        ids = window.row.input_ids
        tokens = letters().convert_ids_to_tokens(ids)
        assert all(text == token for text, token, place in zip(texts, tokens, window.places, strict=True) if place[1])
        assert window.row.context == [int(at == 0 or place[1] > 0) for at, place in enumerate(window.places)]
        assert window.null == 0 and ids[0] == letters().bos_token_id


@pytest.mark.parametrize("longest", [24, 30, 64])
def test_the_tokens_of_an_answer_are_those_of_its_text(longest: int):
    lm = lm_of()
    example = ask(ADA)
    rows = list(tokenize_rows(lm, corpus_of(example), longest, 0, labelled=True))
    cut = windows(lm, letters(), example, min(longest, 40))
    assert len(rows) == len(cut)
    inside = 0
    for row, window in zip(rows, cut, strict=True):
        assert isinstance(row.labels, tuple)
        first, last = map(int, row.labels)
        text = CONTEXT[window.places[first][0] : window.places[last][1]]
        whole = {at for at in range(ADA.start, ADA.end)} <= {begin for begin, end in window.places if end}
        assert (text, first > 0) == (("ada", True) if whole else ("", False))
        inside += whole
    assert inside


def test_labels_are_positions_and_the_mask_is_the_context():
    rows = corpus_of(ask(Answer("ada", 3), context="by ada"), ask(context="by me"))
    [batch] = batches(lm_of(), rows, labelled=True)
    # <s> w h o _ r a n </s> b y _ a d a </s>
    assert batch["start_positions"].tolist() == [12, 0]
    assert batch["end_positions"].tolist() == [14, 0]
    assert batch["context_mask"].dtype == torch.bool and "labels" not in batch
    assert batch["context_mask"].nonzero()[:, 1].tolist() == [0, *range(9, 15), 0, *range(9, 14)]
    unlabelled = batches(lm_of(), rows)[0]
    assert "start_positions" not in unlabelled and "context_mask" in unlabelled


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "bart"])
def test_padding_does_not_change_predictions(family: str):
    lm = lm_of(family, "start" if family == "llama" else "pair")
    rows = corpus_of(ask(context="by ada lovelace"), ask(context="me"))
    with torch.no_grad():
        short = predict(lm, batches(lm, rows, batch_size=1)[1])[0].values
        together = predict(lm, batches(lm, rows)[0])[0]
    torch.testing.assert_close(together.values[2:, : short.shape[1]], short, atol=1e-5, rtol=1e-4)
    assert together.values[2:, short.shape[1] :].isinf().all()


def test_a_long_question_is_cut_and_a_text_is_its_own_context():
    long = Example("who " * 20, CONTEXT)
    [*_, last] = windows(lm_of(), letters(), long, 30)
    assert len(last.row.input_ids) <= 30 and sum(last.row.context or ()) > 1
    [window] = windows(lm_of(), letters(), Example("by ada"), 30)
    assert window.row.input_ids == letters()("by ada")["input_ids"]
    assert window.row.context == [1] * 7 + [0]


def test_what_cannot_be_read_is_one_sentence():
    with pytest.raises(UserError, match=r"max_length 4 leaves the model no room for a context beside the question"):
        windows(lm_of(), letters(), ask(), 4)
    with pytest.raises(UserError, match=r"has no labels, and they are needed here; name data with answers, such as"):
        batches(lm_of(), corpus_of(Example(QUESTION, CONTEXT)), labelled=True)
