"""The token of a word depends on what stands before it, in a way of each kind of tokenizer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from laconic.evaluate.lama.cloze import Boundary, Vocabulary, single_tokens
from laconic.model import load
from tests.words import words

TEXTS = ["Paris (Paris in Paris 1902", "Paris (1902 in 1902", "the (Rome in Rome", "a Rome a Paris"] * 8


@pytest.fixture(scope="module")
def byte_pairs() -> PreTrainedTokenizerFast:
    """As GPT-2's: a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_what_stands_before_a_gap():
    texts = ("", " ", "born in ", "born (", "\t", "it is a/")
    assert [Boundary.after(text).name for text in texts] == ["START", "START", "SPACED", "JOINED", "START", "JOINED"]


def test_byte_pairs_have_two_tokens_for_a_word(byte_pairs: PreTrainedTokenizerFast):
    names = {place: single_tokens(byte_pairs, ["Paris", "Rome", "Lisbon"], place) for place in Boundary}
    shown = {place.name: byte_pairs.convert_ids_to_tokens(list(found.values())) for place, found in names.items()}
    assert shown == {"START": ["Paris", "Rome"], "SPACED": ["ĠParis", "ĠRome"], "JOINED": ["Paris", "Rome"]}
    for place, text in ((Boundary.SPACED, "in Paris"), (Boundary.JOINED, "(Paris"), (Boundary.START, "Paris")):
        assert byte_pairs(text)["input_ids"][-1] == names[place]["Paris"]


def test_sentence_pieces_of_a_real_model(shared_models: Path):
    tokenizer = load(str(shared_models / "mico-tinyllama-1m")).tokenizer
    assert tokenizer is not None
    found = single_tokens(tokenizer, ["school", "Wittgenstein"], Boundary.SPACED)
    assert list(found) == ["school"]
    assert tokenizer("at school", add_special_tokens=False)["input_ids"][-1] == found["school"]


def test_an_unknown_word_is_no_token():
    assert set(single_tokens(words(), ["Paris", "Lisbon", "in Rome"], Boundary.SPACED)) == {"Paris"}


def test_an_uncased_tokenizer_sees_one_word(shared_models: Path):
    tokenizer = load(str(shared_models / "minilm-sst2")).tokenizer
    assert tokenizer is not None
    vocabulary = Vocabulary.of(tokenizer, ["Paris", "paris"], ["Paris", "paris", "Rome", "antidisestablishment"])
    assert vocabulary.candidates is not None
    assert len(vocabulary.candidates[Boundary.SPACED]) == 2
    assert len(set(vocabulary.tokens[Boundary.JOINED].values())) == 1
