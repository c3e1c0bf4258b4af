"""Batches: padding that changes nothing, masks, targets and labels for each task."""

from dataclasses import replace

import pytest
import torch

from laconic.calibrate.batching import batches, max_positions
from laconic.calibrate.collation import pad_token
from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.model import LanguageModel, predict
from tests.architectures import BY_NAME
from tests.tokens import letters

WORDS = ("a tale of two cities", "it was", "the best of times, it was the worst", "of times")


def corpus_of(*examples: Example) -> Corpus:
    return Corpus("words", "train", examples)


TEXTS = corpus_of(*(Example(text) for text in WORDS))
PAIRS = corpus_of(*(Example(text, "of wisdom", label=float(at % 3)) for at, text in enumerate(WORDS)))


def lm_of(name: str, **tokens: str | None) -> LanguageModel:
    special = "start" if name in ("gpt2", "llama") else "pair"
    return replace(BY_NAME[name].lm(), tokenizer=letters(special, **tokens))


@pytest.mark.parametrize(
    "name", ["bert-classifier", "bert-base", "distilbert-classifier", "roberta-masked", "gpt2", "llama", "t5", "bart"]
)
def test_padding_does_not_change_predictions(name: str):
    lm = lm_of(name)
    alone = batches(lm, PAIRS, batch_size=1)
    [together] = batches(lm, PAIRS, batch_size=100)
    assert all(row["attention_mask"].all() for row in alone)
    with torch.no_grad():
        single = torch.cat([predict(lm, row)[0].values for row in alone])
        padded = predict(lm, together)[0].values
    torch.testing.assert_close(padded, single, atol=1e-5, rtol=1e-4)


def test_rows_keep_their_order_and_are_cut_at_what_the_model_can_read():
    lm = lm_of("llama")
    data = batches(lm, TEXTS, batch_size=3, max_length=12)
    assert [len(batch["input_ids"]) for batch in data] == [3, 1]
    rows = [row[mask.bool()].tolist() for batch in data for row, mask in zip(*_ids(batch), strict=True)]
    assert rows == [letters("start")(text, truncation=True, max_length=12)["input_ids"] for text in WORDS]
    long = batches(lm, corpus_of(Example("a" * 500)), max_length=1000)
    assert long[0]["input_ids"].shape == (1, 40)


def _ids(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["input_ids"], batch["attention_mask"]


def test_positions_of_roberta_start_behind_its_padding():
    lm = lm_of("roberta-masked")
    assert max_positions(lm) == 40 - 1 - 1
    [batch] = batches(lm, corpus_of(Example("a" * 100)), max_length=100)
    assert batch["input_ids"].shape == (1, 38)
    predict(lm, batch)
    assert max_positions(lm_of("t5")) is None


def test_a_tokenizer_without_padding_pads_with_its_end():
    lm = lm_of("gpt2", pad_token=None)
    lm.model.config.pad_token_id = None
    assert pad_token(lm) == 2
    [batch] = batches(lm, TEXTS)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 2).all()


def test_segments_only_reach_a_model_that_has_them():
    assert "token_type_ids" not in batches(lm_of("distilbert-classifier"), PAIRS)[0]
    segments = batches(lm_of("bert-classifier"), PAIRS)[0]["token_type_ids"]
    assert segments.max() == 1 and segments[:, 0].max() == 0


def test_labels_are_those_that_the_model_can_predict():
    assert batches(lm_of("bert-classifier"), PAIRS, labelled=True)[0]["labels"].tolist() == [0, 1, 2, 0]
    scores = batches(lm_of("distilbert-classifier"), corpus_of(Example("a", label=0.7)), labelled=True)[0]["labels"]
    assert scores.dtype == torch.float32 and scores.item() == pytest.approx(0.7)


def test_masks_cover_fifteen_percent_of_the_words_and_at_least_one():
    lm = lm_of("bert-masked")
    corpus = corpus_of(Example("a" * 36), Example("b"), *PAIRS.examples)
    [batch] = batches(lm, corpus, seed=3)
    chosen = batch["labels"] != -100
    assert chosen.sum(1)[:2].tolist() == [round(0.15 * 36), 1]
    assert (batch["input_ids"][chosen] == 3).all() and (batch["input_ids"] == 3).sum() == chosen.sum()
    assert (batch["labels"][chosen] > 4).all() and batch["attention_mask"][chosen].all()
    again, other = batches(lm, corpus, batch_size=2, seed=3), batches(lm, corpus, seed=4)[0]
    assert torch.equal(again[0]["input_ids"][0], batch["input_ids"][0, : again[0]["input_ids"].shape[1]])
    assert not torch.equal(other["input_ids"], batch["input_ids"])


def test_targets_come_from_the_target_tokenizer_or_are_the_text_itself():
    lm = replace(lm_of("bart"), target_tokenizer=letters("start"))
    [batch] = batches(lm, corpus_of(Example("abc", target="de"), Example("fg")))
    assert batch["labels"].tolist() == [
        [0, *letters("none")("de")["input_ids"]],
        [0, *letters("none")("fg")["input_ids"]],
    ]
    plain = batches(lm_of("bart"), corpus_of(Example("abc", target="d"), Example("fg")))[0]["labels"]
    assert plain[0].tolist()[-1] == -100 and plain[1].tolist()[-1] == 2


def test_the_texts_of_a_pair_are_rows_of_their_own_for_a_plain_encoder():
    [batch] = batches(lm_of("bert-base"), PAIRS, batch_size=100)
    assert len(batch["input_ids"]) == 2 * len(WORDS)


def test_rows_without_tokens_are_left_out():
    lm = replace(BY_NAME["llama"].lm(), tokenizer=letters("none"))
    [batch] = batches(lm, corpus_of(Example(""), Example("a"), Example("ab")))
    assert len(batch["input_ids"]) == 1
    with pytest.raises(UserError, match="No row of the train split of 'words' has tokens"):
        batches(lm, corpus_of(Example("")))


def test_what_a_tokenizer_lacks_is_said():
    with pytest.raises(UserError, match="has no tokenizer in its folder"):
        batches(BY_NAME["llama"].lm(), TEXTS)
    with pytest.raises(UserError, match="has no mask token"):
        batches(lm_of("bert-masked", mask_token=None), TEXTS)


def test_classes_get_the_numbers_of_the_model():
    lm = lm_of("bert-classifier")
    corpus = replace(PAIRS, classes=("entailment", "neutral", "contradiction"))
    assert batches(lm, corpus, labelled=True)[0]["labels"].tolist() == [0, 1, 2, 0]
    lm.model.config.id2label = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    assert batches(lm, corpus, labelled=True)[0]["labels"].tolist() == [1, 2, 0, 1]
    assert batches(lm, PAIRS, labelled=True)[0]["labels"].tolist() == [0, 1, 2, 0]
