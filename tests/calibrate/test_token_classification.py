"""A word is predicted at its first token; other tokens have the label that losses ignore."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizer

from laconic.calibrate.batching import batches, check_readable
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.row import IGNORED
from laconic.calibrate.sources.records import to_example
from laconic.calibrate.token_classification import tag_words
from laconic.errors import UserError
from laconic.model import LanguageModel, predict
from tests.task_models import TASK_MODELS, TOKENS
from tests.tokens import letters

TAGS = ("O", "B-PER", "I-PER")


def lm_of(family: str = "bert", special: str = "pair") -> LanguageModel:
    lm = replace(TASK_MODELS[f"{family}-{TOKENS.value}"].lm(), tokenizer=letters(special))
    return lm.with_label_order(TAGS)


def sentence(words: str, *tags: str, place: str = "") -> Example:
    return Example(words, words=tuple(words.split()), label=tags or None, place=place)


def corpus_of(*examples: Example) -> Corpus:
    return Corpus("tags", "train", examples)


def test_labels_are_at_the_first_token_of_each_word():
    rows = corpus_of(sentence("ada ran", "B-PER", "O"), sentence("a b", "I-PER", "B-PER"))
    [batch] = batches(lm_of(), rows, labelled=True)
    no = IGNORED
    assert batch["labels"].tolist() == [[no, 1, no, no, no, 0, no, no, no], [no, 2, no, 1, no, no, no, no, no]]


@pytest.mark.parametrize(
    ("family", "special"), [("bert", "pair"), ("roberta", "pair"), ("gpt2", "none"), ("t5", "none")]
)
def test_padding_does_not_change_predictions(family: str, special: str):
    lm = lm_of(family, special)
    rows = corpus_of(sentence("ada ran", "B-PER", "O"), sentence("a b c", "O", "O", "O"))
    with torch.no_grad():
        single = torch.cat([predict(lm, batch)[0].values for batch in batches(lm, rows, batch_size=1)])
        together = predict(lm, batches(lm, rows)[0])[0]
    assert together.rows.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(together.values, single, atol=1e-5, rtol=1e-4)


def test_plain_text_is_split_at_spaces_and_predicted_at_each_word():
    [batch] = batches(lm_of(), corpus_of(Example("ada ran  far", "away"), Example(" ")))
    assert (batch["labels"] != IGNORED).sum().item() == 4
    check_readable(lm_of(), corpus_of(Example("ada ran")))


def test_words_behind_the_longest_row_are_not_read():
    row, tokens = tag_words(lm_of(), letters(), ("ada", "ran", "far"), (1, 0, 0), longest=8)
    assert tokens == [1, 5, None] and len(row.input_ids) == 8
    assert row.labels == [IGNORED, 1, IGNORED, IGNORED, IGNORED, 0, IGNORED, IGNORED]


def test_labels_that_the_model_lacks_are_named_with_their_place():
    rows = corpus_of(sentence("a b", "O", "B-PER", place="a:1"), sentence("c", "B-LOC", place="a:4"))
    with pytest.raises(
        UserError, match=r"a:4, word 1 has the label 'B-LOC', which is none of the classes of the model: 0"
    ):
        batches(lm_of(), rows, labelled=True)
    rows = corpus_of(sentence("a b", "NN", "VB", place="a:1"))
    with pytest.raises(UserError, match=r"has the classes O, B-PER, I-PER, and 'tags' has NN, VB, which do not match"):
        batches(lm_of(), rows, labelled=True)


def test_rows_without_tags_are_refused_if_labels_are_needed():
    with pytest.raises(UserError, match=r"'tags' has no labels, and they are needed here; name data with words with"):
        batches(lm_of(), corpus_of(sentence("a b")), labelled=True)
    with pytest.raises(UserError, match=r"a:3 has no list of words with a class for each, which the model predicts"):
        batches(lm_of(), corpus_of(Example("a b", label="O", place="a:3")), labelled=True)


class Spaces(PreTrainedTokenizer):
    """A tokenizer in Python, which gives no places."""

    def get_vocab(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("tag", [None, ""])
def test_a_word_without_a_class_is_named_with_its_number(tag: str | None):
    row = to_example({"tokens": ["ada", "ran"], "ner_tags": ["B-PER", tag]}, "a.jsonl:7")
    with pytest.raises(UserError, match=r"^a\.jsonl:7, word 2 has no label \(null and an empty text mean none\);"):
        batches(lm_of(), corpus_of(row), labelled=True)
    batches(lm_of(), corpus_of(row))


def test_a_tokenizer_without_places_is_refused():
    lm = replace(lm_of(), tokenizer=Spaces())
    with pytest.raises(UserError, match=r"\(Spaces\) does not give the place of its tokens .* token-classification"):
        batches(lm, corpus_of(sentence("a b")))
