"""BLiMP equals scoring each sentence alone, and its phenomena are found by name and by glob."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate import check_task, evaluate
from laconic.evaluate.blimp import PHENOMENA, PHENOMENON_OF, Blimp, log_probabilities, match_paradigms
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.models import with_tokenizer
from tests.words import WORDS, words

CHOSEN = ("wh_island", "adjunct_island", "npi_present_1", "passive_2")


@pytest.fixture
def blimp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pairs of each of four paradigms, in one file."""
    draw = random.Random(0)
    lines = []
    for paradigm in CHOSEN:
        for _ in range(10):
            good, bad = (" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(2))
            lines.append(json.dumps({"phenomenon": paradigm, "good": good, "bad": bad}))
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "some.jsonl").write_text("\n".join(lines))
    return tmp_path / "blimp"


def reader(name: str) -> LanguageModel:
    lm = BY_NAME[name].lm()
    return replace(lm, tokenizer=words("start" if lm.task.value == "causal" else "pair"))


@torch.no_grad()
def reference(lm: LanguageModel, sentence: str) -> float:
    """The chain rule, or one pass for each masked word."""
    assert lm.tokenizer is not None
    number = lm.tokenizer.get_vocab()
    tokens = [number[word] for word in sentence.split()]
    total = 0.0
    for at, token in enumerate(tokens):
        if lm.task.value == "causal":
            logits = lm.model(torch.tensor([[number["<s>"], *tokens[:at]]])).logits[0, -1]
        else:
            masked = [number["<s>"], *tokens[:at], number["<mask>"], *tokens[at + 1 :], number["</s>"]]
            logits = lm.model(torch.tensor([masked])).logits[0, at + 1]
        total += logits.double().log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-masked", "roberta-masked"])
def test_the_table_equals_a_reference(name: str, blimp: Path):
    lm, task = reader(name), Blimp()
    corpus = task.load_corpus(None)
    scores = [(reference(lm, row.text), reference(lm, row.pair or "")) for row in corpus.examples]
    sentences = [sentence for row in corpus.examples for sentence in (row.text, row.pair or "")]
    found = log_probabilities(lm, sentences, silent, "x").reshape(-1, 2)
    assert found.numpy() == pytest.approx(np.array(scores), rel=1e-4)
    judged = task.evaluate(lm, corpus, silent)
    right = [float(good > bad) for good, bad in scores]
    assert judged.table[:, 0].tolist() == right
    assert judged.metrics["accuracy"](judged.table) == pytest.approx(np.mean(right))
    phenomena = ("island_effects", "npi_licensing", "argument_structure")
    assert list(judged.metrics) == ["accuracy", *(f"accuracy/{phenomenon}" for phenomenon in phenomena)]
    assert judged.metrics["accuracy/island_effects"](judged.table) == pytest.approx(np.mean(right[:20]))
    assert judged.metrics["accuracy/npi_licensing"](judged.table) == pytest.approx(np.mean(right[20:30]))
    assert judged.settings["paradigms"]["passive_2"] == {"pairs": 10, "accuracy": np.mean(right[30:])}


def test_it_is_compared_with_an_original(blimp: Path):
    lm, original = compress_everything(reader("bert-masked"), rank=4), reader("bert-masked")
    found = evaluate(lm, ["blimp"], against=original, limit=30, cost=False).to_json()
    assert found["settings"]["blimp"]["split"] == "test" and found["settings"]["blimp"]["rows"] == 30
    ours, theirs = (side["results"]["blimp"]["accuracy"]["value"] for side in (found, found["original"]))
    assert found["difference"]["blimp"]["accuracy"]["value"] == pytest.approx(ours - theirs)
    # The acceptable sentences.
    assert found["fidelity"]["rows"] == 30 and found["fidelity"]["kl"] > 0


def test_two_models_are_compared_on_a_thousand_sentences():
    names = ("wh_island", *["passive_2"] * 1500)
    rows = tuple(Example(f"{at}", pair="", group=f"{PHENOMENON_OF[name]}/{name}") for at, name in enumerate(names))
    texts = Blimp().texts(Corpus("blimp", "test", rows)).examples
    assert [row.text for row in texts] == [str(at) for at in range(1000)] and texts[0].pair is None


def test_a_kept_table_has_the_same_figures(blimp: Path):
    task = Blimp()
    judged = task.evaluate(reader("gpt2"), task.load_corpus(None), silent)
    kept = task.metrics(json.loads(json.dumps(dict(judged.settings))))
    assert [(name, of(judged.table)) for name, of in kept.items()] == [
        (name, of(judged.table)) for name, of in judged.metrics.items()
    ]


def test_equally_probable_is_not_right():
    corpus = Corpus("blimp", "test", (Example("Paris is", pair="Paris is", group="binding/principle_A_case_1"),))
    assert Blimp().evaluate(reader("gpt2"), corpus, silent).table[:, 0].tolist() == [0]


def test_pairs_that_are_too_long_are_left_out(blimp: Path):
    rows = (
        Example("Paris is", pair="is " * 50, group="binding/principle_A_case_1"),
        *Blimp().load_corpus(None).examples,
    )
    judged = Blimp().evaluate(reader("gpt2"), Corpus("blimp", "test", rows), silent)
    assert judged.rows == tuple(range(1, 41)) and judged.settings["left_out"] == 1
    with pytest.raises(UserError, match="can read no pair of 'blimp'"):
        Blimp().evaluate(reader("gpt2"), Corpus("blimp", "test", rows[:1]), silent)


def test_the_release_is_read_too(blimp: Path):
    (blimp / "some.jsonl").unlink()
    (blimp / "data").mkdir()
    row = {"sentence_good": "Who is it?", "sentence_bad": "Who it is?", "UID": "wh_island", "field": "syntax"}
    (blimp / "data" / "wh_island.jsonl").write_text(json.dumps(row))
    (example,) = Blimp("island_effects").load_corpus(None).examples
    assert (example.text, example.pair, example.group) == ("Who is it?", "Who it is?", "island_effects/wh_island")
    with pytest.raises(UserError, match=r"has no pair of passive_1, passive_2; put the release's data there"):
        Blimp("passive*").load_corpus(None)


def test_names_and_globs():
    assert len(PHENOMENA) == 12 and len(PHENOMENON_OF) == 67
    assert match_paradigms("NPI_licensing") == PHENOMENA["npi_licensing"]
    assert match_paradigms("principle_a_case_*") == ("principle_A_case_1", "principle_A_case_2")
    assert Blimp.from_name("blimp/island_effects").name == "blimp/island_effects"
    assert Blimp.from_name("blimp").name == Blimp.from_name("blimp/").name == "blimp"
    with pytest.raises(UserError, match=r"no BLiMP phenomenon 'iland_effects': did you mean 'island_effects'\? known"):
        check_task("blimp/iland_effects")


def test_what_is_missing_or_malformed_is_named(blimp: Path, monkeypatch: pytest.MonkeyPatch):
    check_task("blimp")
    (blimp / "other.jsonl").write_text('{"phenomenon": "wh_iland", "good": "a", "bad": "b"}')
    with pytest.raises(UserError, match=r"other\.jsonl:1 is of no BLiMP paradigm 'wh_iland': did you mean 'wh_island'"):
        Blimp().load_corpus(None)
    (blimp / "other.jsonl").write_text('{"phenomenon": "wh_island", "good": "a"}')
    with pytest.raises(UserError, match=r"other\.jsonl:1 has no field 'sentence_bad' or 'bad'"):
        Blimp().load_corpus(None)
    monkeypatch.setenv("LACONIC_DATA", str(blimp))
    with pytest.raises(UserError, match=r"there is no \.jsonl file in '.*blimp/blimp'; set LACONIC_DATA"):
        check_task("blimp")


def test_other_models_are_refused(blimp: Path):
    corpus = Blimp().load_corpus(None)
    for name, kind in (("bart", "a seq2seq"), ("bert-classifier", "a classification"), ("bert-base", "an embedding")):
        with pytest.raises(UserError, match=f"'blimp' needs a causal or masked model; .* is {kind} model"):
            Blimp().evaluate(with_tokenizer(name), corpus, silent)
    with pytest.raises(UserError, match="has no mask token"):
        Blimp().evaluate(replace(BY_NAME["bert-masked"].lm(), tokenizer=words(mask_token=None)), corpus, silent)
