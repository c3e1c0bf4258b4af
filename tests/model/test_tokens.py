"""Special tokens that a configuration does not have, or that the model has no row for, and models that cannot be."""

from pathlib import Path

import pytest
import torch
import transformers as hf

from laconic.calibrate import LayerStats
from laconic.calibrate.batching import batches, limit_batch_size, max_positions
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.passes import forward, random_batch
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.formats import Quantized
from laconic.methods import Rtn
from laconic.model import LanguageModel, ModelTask, load, load_empty, predict
from laconic.model.tokens import (
    check_decoder_start,
    pad_token_id,
    special_token_ids,
    target_vocabulary_size,
    vocabulary_size,
)
from tests.architectures import BY_NAME, VOCABULARY
from tests.odd import ABSENT, saved
from tests.tiny_models import GPT2, MARIAN, SMALL
from tests.tokens import letters

TEXTS = Corpus("memory", "dev", (Example("the cat is good"), Example("a dog")))


def crowded(**special: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer that fills the vocabulary of the tiny models, and then has one token more."""
    tokenizer = letters("start", pad_token=None)
    tokenizer.add_tokens([f"w{at}" for at in range(VOCABULARY - len(tokenizer))])
    assert len(tokenizer) == VOCABULARY
    return tokenizer


def test_a_pad_that_was_added_without_a_row_is_never_read(tmp_path: Path) -> None:
    tokenizer = crowded()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lm = load(str(saved(tmp_path / "m", "llama", tokenizer, {"pad_token_id": None})))
    assert lm.tokenizer is not None and lm.tokenizer.pad_token_id == VOCABULARY == vocabulary_size(lm.model)
    (batch,) = batches(lm, TEXTS)
    assert int(batch["input_ids"].max()) < VOCABULARY
    # Padding of any token changes nothing of what is predicted.
    (alone,) = batches(lm, Corpus("memory", "dev", TEXTS.examples[1:]))
    ours, _ = predict(lm, batch)
    theirs, _ = predict(lm, alone)
    torch.testing.assert_close(ours.values[ours.rows == 1], theirs.values)


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "bert-masked", "bart", "bert-base"])
def test_a_token_of_a_text_without_a_row_is_one_sentence(tmp_path: Path, name: str) -> None:
    tokenizer = crowded()
    tokenizer.add_tokens(["cat"])
    lm = load(str(saved(tmp_path / "m", name, tokenizer)))
    with pytest.raises(UserError) as caught:
        batches(lm, TEXTS)
    assert str(caught.value) == (
        f"The tokenizer of '{lm.source}' gives the token 50 (for 'cat'), and the model has embeddings for 50 tokens, 0 "
        "to 49; use the tokenizer that it was trained with, or resize its embeddings."
    )


def test_targets_are_checked_against_the_rows_of_the_decoder(tmp_path: Path) -> None:
    small = {**MARIAN, "decoder_vocab_size": 20, "share_encoder_decoder_embeddings": False, "decoder_start_token_id": 1}
    lm = load(str(saved(tmp_path / "m", hf.MarianMTModel(hf.MarianConfig(**small)))))
    assert (vocabulary_size(lm.model), target_vocabulary_size(lm.model)) == (VOCABULARY, 20)
    with pytest.raises(UserError, match="embeddings for 20 tokens, 0 to 19"):
        batches(lm, Corpus("memory", "dev", (Example("a cat", target="z"),)))
    assert batches(lm, Corpus("memory", "dev", (Example("z", target="a"),)))


@pytest.mark.parametrize("pad", [VOCABULARY, VOCABULARY + 7, None, ABSENT])
def test_a_classifier_whose_pad_has_no_row_reads_one_row_at_a_time(tmp_path: Path, pad: object) -> None:
    model = hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, **SMALL, num_labels=3))
    lm = load(str(saved(tmp_path / "m", model, config={"pad_token_id": pad})))
    assert pad_token_id(lm) is None and limit_batch_size(lm, 16) == 1
    assert len(batches(lm, TEXTS)) == 2
    before = vars(lm.model.config).get("pad_token_id")
    forward(lm, random_batch(lm, 3, 5))
    assert vars(lm.model.config).get("pad_token_id") == before


def test_what_a_configuration_declares() -> None:
    for said, found in ((None, ()), (7, (7,)), ([7, 9], (7, 9)), ([], ())):
        assert special_token_ids(hf.GPT2Config(eos_token_id=said), "eos_token_id") == found
    assert special_token_ids(hf.CodeGenConfig(), "pad_token_id") == ()
    assert special_token_ids(hf.T5Config(), "bos_token_id") == ()


@pytest.mark.parametrize("ends", [None, [2, 3], [2, 900]])
def test_random_rows_have_no_end_within_them(ends: object) -> None:
    lm = BY_NAME["llama"].lm()
    lm.model.config.eos_token_id = ends
    tokens = random_batch(lm, 20, 30)["input_ids"]
    inner = set(tokens[:, :-1].unique().tolist())
    assert not inner & {1, *(ends or [])} and int(tokens.max()) < VOCABULARY
    assert bool((tokens[:, -1] == 2).all()) is (ends is not None)


def test_a_position_limit_that_is_none() -> None:
    lm = BY_NAME["llama"].lm()
    for said in (-1, 0):
        lm.model.config.max_position_embeddings = said
        assert max_positions(lm) is None


@pytest.mark.parametrize(
    ("name", "changes", "missing"),
    [
        ("t5", {"decoder_start_token_id": ABSENT}, "decoder_start_token_id"),
        ("t5", {"decoder_start_token_id": None}, "decoder_start_token_id"),
        ("t5", {"pad_token_id": None}, "pad_token_id"),
        ("bart", {"pad_token_id": None}, "pad_token_id"),
    ],
)
def test_targets_that_cannot_begin_are_told_before_weights_are_read(
    tmp_path: Path, name: str, changes: dict[str, object], missing: str
) -> None:
    folder = str(saved(tmp_path / "m", name, config=changes))
    said = rf"^The configuration of '{folder}' has no {missing}, with which its decoder begins"
    with pytest.raises(UserError, match=said):
        check_decoder_start(load_empty(folder))
    lm = load(folder)
    with pytest.raises(UserError, match=said):
        batches(lm, TEXTS)
    # What it costs can be measured all the same.
    cost = evaluate(lm, [], cost=True).to_json()["cost"]
    assert len(cost["latency"]) == len(cost["generation"]) == 2


def test_a_pad_token_that_makes_no_model(tmp_path: Path) -> None:
    folder = str(saved(tmp_path / "m", "llama", config={"pad_token_id": VOCABULARY}))
    with pytest.raises(UserError, match=r"describes no model .*: pad_token_id is 50, and vocab_size is only 50"):
        load_empty(folder)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"num_hidden_layers": -1}, "num_hidden_layers must be at least 1; got -1."),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers must be at least 1; got 0."),
        ("gpt2", {"n_layer": -2}, "n_layer must be at least 1; got -2."),
        ("llama", {"num_hidden_layers": "two"}, "describes no model: Field 'num_hidden_layers' expected int, got "),
        ("llama", {"num_hidden_layers": 1.5}, "describes no model: Field 'num_hidden_layers' expected int, got "),
        ("llama", {"num_hidden_layers": None}, "describes no model: Field 'num_hidden_layers' expected int, got "),
        # Where nothing is refused, memory is taken for each of them before there is a model.
        ("llama", {"num_hidden_layers": 10_001}, "num_hidden_layers must be at most 10,000; got 10001."),
        ("gpt2", {"n_layer": 10_001}, "n_layer must be at most 10,000; got 10001."),
        ("bart", {"decoder_layers": 10_001}, "decoder_layers must be at most 10,000; got 10001."),
        ("t5", {"num_decoder_layers": 10_001}, "num_decoder_layers must be at most 10,000; got 10001."),
        ("distilbert-masked", {"n_layers": 10_001}, "n_layers must be at most 10,000; got 10001."),
        ("bart", {"decoder_layers": -1}, "decoder_layers must be at least 1; got -1."),
        ("t5", {"num_layers": -1, "num_decoder_layers": None}, "num_layers must be at least 1; got -1."),
        ("distilbert-masked", {"n_layers": 0}, "n_layers must be at least 1; got 0."),
        ("bert-masked", {"hidden_size": 33}, "describes no model that can be built: "),
        ("bert-masked", {"hidden_size": -32}, "describes no model that can be built: "),
        ("llama", {"vocab_size": -5}, "describes no model that can be built: "),
        ("llama", {"hidden_size": 0}, "the weight of 'model.embed_tokens' would have the shape (50, 0)"),
        (
            "llama",
            {"intermediate_size": 0},
            "the weight of 'model.layers.0.mlp.gate_proj' would have",
        ),
        ("gpt2", {"n_inner": 0}, "the weight of 'transformer.h.0.mlp.c_fc' would have the shape (32, 0)"),
        ("llama", {"num_attention_heads": 0}, "describes no model: ZeroDivisionError: "),
        ("llama", {"rms_norm_eps": float("nan")}, ", rms_norm_eps must be a number; got nan."),
        ("bert-masked", {"hidden_act": "reluu"}, "describes no model that can be built: "),
    ],
)
def test_a_configuration_that_makes_no_model(tmp_path: Path, name: str, changes: dict[str, object], said: str) -> None:
    folder = str(saved(tmp_path / "m", name, config=changes))
    with pytest.raises(UserError) as caught:
        load_empty(folder)
    assert f"config.json of '{folder}'" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "bert-masked", "t5"])
def test_an_embedding_of_codes_has_the_same_vocabulary_and_its_bytes(name: str) -> None:
    lm = BY_NAME[name].lm()
    (site,) = lm.sites(("embedding",))
    coded = Rtn(bits=4, group_size=8).compress(site.weight(), LayerStats({}))
    assert isinstance(coded, Quantized)
    lm.replace(site, coded)
    (site,) = lm.sites(("embedding",))
    assert vocabulary_size(lm.model) == VOCABULARY
    assert lm.site_nbytes(site) == coded.nbytes() > 0
    assert lm.with_dtype(torch.float16).site_nbytes(site) == coded.nbytes()
    if lm.task is not ModelTask.SEQ2SEQ:
        forward(lm, random_batch(lm, 2, 5))


def test_tokens_beyond_what_a_batch_can_hold_are_one_sentence() -> None:
    lm: LanguageModel = BY_NAME["gpt2"].lm()
    tokens = torch.full((1, 60), 5)
    with pytest.raises(UserError, match=r"cannot read 1 row of 60 tokens: index out of range"):
        predict(lm, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
