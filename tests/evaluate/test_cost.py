"""Costs against what is known of a model: its files, its matrices, its memory."""

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BartModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    T5Model,
)

from laconic.calibrate.passes import random_batch
from laconic.compress import Compress
from laconic.evaluate import latency, measure_cost
from laconic.evaluate.cost import stored_bytes
from laconic.evaluate.footprint import _LiveBytes, count_macs, peak_bytes, weight_bytes
from laconic.evaluate.timing import fixed_threads
from laconic.formats import DynamicInt8
from laconic.formats.int8 import FULL_ONEDNN, KERNELS, Int8Matrix
from laconic.methods import Int8
from laconic.model import LanguageModel
from laconic.store import file_bytes, save
from tests.architectures import (
    ARCHITECTURES,
    BART,
    BLOCKS,
    BY_NAME,
    DECODER,
    GPT2,
    INNER,
    SMALL,
    T5,
    VOCABULARY,
    WIDTH,
    compress_everything,
    factors,
)
from tests.task_models import CHOICE, TASK_MODELS

BATCH, LENGTH = 3, 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["bert-masked", "gpt2-untied", "t5", "bart", "llama-tied"])
def test_bytes_are_those_on_disk(tmp_path: Path, name: str, dtype: torch.dtype):
    dense, compressed = BY_NAME[name].lm(), compress_everything(BY_NAME[name].lm().with_dtype(dtype), rank=4)
    for at, lm in enumerate((dense.with_dtype(dtype), compressed)):
        save(lm, tmp_path / str(at))
        # The file's own metadata and rounding to 8 bytes are a few dozen bytes.
        assert stored_bytes(lm) == pytest.approx(file_bytes(tmp_path / str(at)), abs=100)
        assert measure_cost(lm, tmp_path / str(at), (1,), (4,)).bytes == file_bytes(tmp_path / str(at))


def test_shared_matrices_count_once():
    tied, untied = (measure_cost(BY_NAME[name].lm(), None, (1,), (4,)) for name in ("llama-tied", "llama"))
    table = VOCABULARY * WIDTH
    assert untied.parameters - tied.parameters == table
    assert untied.memory_bytes - tied.memory_bytes == 4 * table
    assert untied.bytes - tied.bytes == pytest.approx(4 * table, abs=100)


def test_operations_of_known_models():
    tokens = BATCH * LENGTH
    attention = 2 * BATCH * LENGTH**2 * WIDTH
    lm = BY_NAME["gpt2"].lm()
    block = 4 * WIDTH**2 + 2 * WIDTH * INNER
    expected = tokens * (BLOCKS * block + WIDTH * VOCABULARY) + BLOCKS * attention
    assert count_macs(lm, random_batch(lm, BATCH, LENGTH)) == expected
    lm = BY_NAME["bert-classifier"].lm()
    # The pooler and the classifier read one token of each row.
    expected = BLOCKS * (tokens * block + attention) + BATCH * (WIDTH**2 + 3 * WIDTH)
    assert count_macs(lm, random_batch(lm, BATCH, LENGTH)) == expected


def test_a_low_rank_layer_saves_the_operations_that_it_should():
    lm = BY_NAME["bert-classifier"].lm()
    inputs = random_batch(lm, BATCH, LENGTH)
    before = count_macs(lm, inputs)
    sites = lm.sites(("ffn",))
    for site in sites:
        lm.replace(site, factors(site, rank=5))
    saved = len(sites) * (WIDTH * INNER - 5 * (WIDTH + INNER))
    assert before - count_macs(lm, inputs) == BATCH * LENGTH * saved


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_embedding_that_both_stacks_read_counts_once_a_reading(name: str):
    lm = BY_NAME[name].lm()
    inputs = random_batch(lm, BATCH, LENGTH)
    before = count_macs(lm, inputs)
    [site] = lm.sites(("embedding",))
    assert len(site.names) > 1
    lm.replace(site, factors(site, rank=5))
    # Once for every token of the source and once for every token of the target.
    assert count_macs(lm, inputs) - before == 2 * BATCH * LENGTH * 5 * WIDTH


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
def test_every_architecture_can_be_measured(architecture):
    lm = architecture.lm()
    [speed] = measure_cost(lm, None, (2,), (60,)).speeds
    length = 60 if architecture.name.startswith("t5") else 38 if architecture.name.startswith("roberta") else 40
    assert (speed.latency.batch, speed.latency.length) == (2, length)
    assert speed.macs > 2 * length * BLOCKS * 4 * WIDTH**2
    assert speed.peak_bytes > weight_bytes(lm)
    assert speed.latency.lower_quartile <= speed.latency.median <= speed.latency.upper_quartile
    assert speed.latency.throughput == pytest.approx(2 * length / speed.latency.median)


def test_live_tensors_are_counted_until_they_are_freed():
    with _LiveBytes() as alive:
        total = torch.zeros(1000)
        for _ in range(50):
            total = total + 1
        halves = total.view(2, 500)
        del total
        held = halves[0] * 2
    assert alive.peak == 2 * 4000
    assert alive.current == 4000 + 2000 == halves.untyped_storage().nbytes() + held.nbytes


def test_peak_memory_grows_with_the_batch_and_shrinks_with_the_weights():
    lm = BY_NAME["llama"].lm()
    small, large = (peak_bytes(lm, random_batch(lm, batch, 32)) for batch in (1, 8))
    logits = 4 * 32 * VOCABULARY
    assert large - small > 7 * logits
    compressed = compress_everything(BY_NAME["llama"].lm(), rank=2)
    saved = weight_bytes(lm) - weight_bytes(compressed)
    assert saved > 0
    assert small - peak_bytes(compressed, random_batch(compressed, 1, 32)) == pytest.approx(saved, rel=0.1)


def test_timings_use_the_threads_asked_for_and_give_them_back(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    with fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    monkeypatch.setattr(import_module("laconic.evaluate.timing"), "MAX_SECONDS", 30.0)
    found = latency(BY_NAME["bert-base"].lm(), 2, 8, runs=7)
    assert found.runs == 7 and found.median > 0


def test_random_batches_hold_no_padding_and_are_the_same_each_time():
    lm = BY_NAME["llama"].lm()
    batch = random_batch(lm, 50, 30)
    assert not (batch["input_ids"] == lm.model.config.pad_token_id).any() and batch["attention_mask"].all()
    assert torch.equal(batch["input_ids"], random_batch(lm, 50, 30)["input_ids"])


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=2, num_labels=3)),
        lambda: LlamaForSequenceClassification(LlamaConfig(**DECODER, eos_token_id=2, num_labels=1)),
        lambda: BartForSequenceClassification(BartConfig(**BART, **SMALL, num_labels=3)),
        lambda: T5ForSequenceClassification(T5Config(**T5)),
        lambda: T5Model(T5Config(**T5)),
        lambda: BartModel(BartConfig(**BART, **SMALL)),
    ],
)
def test_classifiers_and_encoders_of_every_kind_can_be_measured(model):
    lm = LanguageModel.of(model().eval())
    padding = lm.model.config.pad_token_id
    [one, many] = measure_cost(lm, None, (1, 8), (30,)).speeds
    assert many.macs == pytest.approx(8 * one.macs)
    assert lm.model.config.pad_token_id == padding
    ids = random_batch(lm, 50, 30)["input_ids"]
    assert (ids[:, -1] == lm.model.config.eos_token_id).all()
    assert not (ids[:, :-1] == lm.model.config.eos_token_id).any()
    assert not (ids == (0 if padding is None else padding)).any()


def test_what_int8_kernels_keep_is_in_memory_and_named():
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Int8()).apply(lm, None)
    stored = weight_bytes(lm)
    cost = measure_cost(lm, batch_sizes=(1,), lengths=(4,))
    # Nothing beats a dense layer of this size, so that every matrix is kept multiplied out.
    layers = [layer for layer in lm.model.modules() if isinstance(layer, DynamicInt8)]
    assert cost.memory_bytes - stored == sum(4 * math.prod(layer.shape) for layer in layers)
    assert cost.machine["int8"] == {"4 rows: dense": len(layers)}


def test_what_onednn_packed_has_no_storage_to_follow():
    kernel = KERNELS[FULL_ONEDNN](Int8Matrix(torch.ones(32, 16, dtype=torch.int8), torch.ones(32)), torch.float32)
    with _LiveBytes() as alive:
        kernel(torch.rand(8, 16), None)
    assert 8 * 32 * 4 <= alive.peak < 8 * 32 * 4 * 4


def test_lengths_that_are_cut_to_the_same_are_timed_once():
    lm = BY_NAME["bert-classifier"].lm()
    longest = lm.model.config.max_position_embeddings
    speeds = measure_cost(lm, batch_sizes=(1,), lengths=(4, longest, longest + 8, 4 * longest)).speeds
    assert [speed.latency.length for speed in speeds] == [4, longest]


def test_each_choice_of_a_row_has_tokens_of_its_own():
    """A row of four choices is four sequences, and a token costs what it costs a classifier of texts."""
    one, four = BY_NAME["bert-classifier"].lm(), TASK_MODELS[f"bert-{CHOICE.value}"].lm()
    texts, choices = (measure_cost(lm, batch_sizes=(2,), lengths=(16,)).speeds[0] for lm in (one, four))
    assert choices.latency.choices == 4 and choices.latency.tokens == 4 * texts.latency.tokens == 2 * 4 * 16
    told = choices.to_json()
    assert told["choices"] == 4 and "choices" not in texts.to_json()
    assert told["throughput"] == pytest.approx(128 / choices.latency.median)
    assert told["macs_per_token"] == pytest.approx(texts.to_json()["macs_per_token"], rel=0.01)
