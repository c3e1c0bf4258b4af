"""An evaluation that was stopped goes on where it was, and what has changed is measured anew."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.cli.main import status
from laconic.evaluate import evaluate
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.score_cache import FOLDER, ScoreCache, fingerprint
from laconic.progress import Item
from laconic.store import save
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.models import with_tokenizer
from tests.words import words

CORPUS = Corpus("dickens", "dev", (Example("it was the best of times"), Example("it was the worst of times")))


class Told:
    """A `Track` that remembers what work it was told of, and may be interrupted at one."""

    def __init__(self, until: str = "") -> None:
        self.works: list[str] = []
        self._until = until

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        if what == self._until:
            raise KeyboardInterrupt
        self.works.append(what)
        return items


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Two tasks."""
    for name, text in (("one", "it was the age\nof wisdom"), ("two", "it was the age\nof foolishness")):
        (tmp_path / f"{name}.txt").write_text(text)
    return [f"perplexity:{tmp_path / name}.txt" for name in ("one", "two")]


def test_an_interrupted_evaluation_goes_on_at_the_task_that_was_not_done(tasks: list[str]):
    whole = evaluate(with_tokenizer("gpt2"), tasks, cost=False).to_json()
    with pytest.raises(KeyboardInterrupt):
        evaluate(with_tokenizer("gpt2"), tasks, cost=False, resume=True, track=Told(until=tasks[1]))
    second = Told()
    found = evaluate(with_tokenizer("gpt2"), tasks, cost=False, resume=True, track=second)
    assert second.works == tasks[1:]
    assert json.loads(json.dumps(found.to_json())) == whole
    third = Told()
    assert evaluate(with_tokenizer("gpt2"), tasks, cost=False, resume=True, track=third).to_json() == found.to_json()
    assert third.works == []


def test_both_models_of_a_comparison_are_kept(tasks: list[str]):
    small = compress_everything(with_tokenizer("gpt2"), rank=4)
    first = evaluate(small, tasks, against=with_tokenizer("gpt2"), cost=False, resume=True)
    told = Told()
    again = evaluate(small, tasks, against=with_tokenizer("gpt2"), cost=False, resume=True, track=told)
    assert told.works == ["fidelity"]
    assert again.to_json() == first.to_json()


@pytest.fixture
def knowledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Facts of two corpora and pairs of two phenomena, as tasks."""
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    facts = [(*fact, "TREx", "P36") for fact in (("France", "Paris"), ("Italy", "Rome"))]
    facts += [(*fact, "Google_RE", "place_of_birth") for fact in (("Norway", "Oslo"), ("Spain", "Madrid"))]
    pairs = [("wh_island", "Paris is in France", "Paris in is France"), ("passive_1", "the river", "river the")]
    lines = {
        "lama/facts.jsonl": [
            {
                "masked_sentence": f"the capital of {sub} is [MASK]",
                "sub": sub,
                "obj": obj,
                "source": source,
                "relation": of,
            }
            for sub, obj, source, of in facts
        ],
        "blimp/pairs.jsonl": [{"phenomenon": name, "good": good, "bad": bad} for name, good, bad in pairs],
    }
    for name, rows in lines.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    return ["lama", "lama/trex:all", "blimp"]


@pytest.mark.parametrize("name", ["gpt2", "roberta-masked"])
def test_what_a_model_knows_is_kept_too(name: str, knowledge: list[str]):
    lm = replace(BY_NAME[name].lm(), tokenizer=words("start" if name == "gpt2" else "pair"))
    small = compress_everything(replace(BY_NAME[name].lm(), tokenizer=lm.tokenizer), rank=4)
    first = evaluate(small, knowledge, against=lm, cost=False, resume=True).to_json()
    told = Told()
    again = evaluate(small, knowledge, against=lm, cost=False, resume=True, track=told).to_json()
    assert told.works == ["fidelity"]
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first))
    assert again["results"]["lama"].keys() > {"p@1", "p@1/trex", "p@1/google_re"}
    assert again["results"]["blimp"].keys() > {"accuracy", "accuracy/island_effects"}


def test_only_what_is_asked_for_is_kept(tasks: list[str], cache: Path):
    evaluate(with_tokenizer("gpt2"), tasks, cost=False)
    assert not cache.exists()


def works(lm_name: str = "gpt2", judge: Perplexity | None = None, corpus: Corpus = CORPUS, seed: int = 0) -> list[str]:
    """The names of the work that judging a model takes, without what is cached."""
    told, lm = Told(), with_tokenizer(lm_name)
    torch.manual_seed(seed)
    lm.model.get_parameter("transformer.ln_f.bias").data += 0.5 * seed
    ScoreCache(lm).evaluate(judge or Perplexity("dickens"), corpus, told)
    return told.works


def test_whatever_changes_is_measured_anew(monkeypatch: pytest.MonkeyPatch):
    assert works() != [] == works()
    for changed in (
        works(seed=1),
        works(judge=Perplexity("dickens", context=8)),
        works(corpus=CORPUS.first(1)),
        works(corpus=Corpus("dickens", "dev", tuple(reversed(CORPUS.examples)))),
    ):
        assert changed == ["perplexity:dickens"]
    monkeypatch.setattr(import_module("laconic.evaluate.score_cache"), "hash_packages", lambda *packages: "other")
    assert works() != []


def test_what_a_model_is_decides_its_fingerprint():
    lm = with_tokenizer("gpt2")
    assert fingerprint(lm) == fingerprint(with_tokenizer("gpt2"))
    others = [with_tokenizer("llama"), compress_everything(with_tokenizer("gpt2"), rank=4)]
    lm.tokenizer.add_tokens("!")  # type: ignore[union-attr]
    assert len({fingerprint(one) for one in (with_tokenizer("gpt2"), lm, *others)}) == 4


def test_how_the_last_text_was_cut_is_not_what_a_model_is():
    lm = with_tokenizer("gpt2")
    assert lm.tokenizer is not None
    before = fingerprint(lm)
    lm.tokenizer(["it was", "it"], truncation=True, max_length=3, padding=True)
    assert fingerprint(lm) == before


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"table": [1], "shape": [2, 2], "settings": {}, "rows": null}'])
def test_a_damaged_entry_costs_time_and_no_more(cache: Path, damage: str):
    works()
    (entry,) = cache.iterdir()
    entry.write_text(damage)
    assert works() == ["perplexity:dickens"] and works() == []


def test_an_entry_without_what_its_metrics_are_told_by_is_none(cache: Path, knowledge: list[str]):
    lm = replace(BY_NAME["gpt2"].lm(), tokenizer=words("start"))
    evaluate(lm, knowledge[:1], cost=False, resume=True)
    (entry,) = cache.iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "settings": {}}))
    told = Told()
    assert "p@1" in evaluate(lm, knowledge[:1], cost=False, resume=True, track=told).results["lama"]
    assert told.works == ["lama"]


def test_a_cache_of_nothing_keeps_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LACONIC_CACHE_GB", "0")
    assert works() == works() != []
    assert not cache.exists()


def test_the_oldest_entries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    works()
    (entry,) = cache.iterdir()
    os.utime(entry, (0, 0))
    monkeypatch.setenv("LACONIC_CACHE_GB", str(1.5 * entry.stat().st_size / 1e9))
    works(seed=1)
    assert len(list(cache.iterdir())) == 1 and not entry.exists()


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path, tasks: list[str], cache: Path, capsys: pytest.CaptureFixture[str]):
    save(with_tokenizer("gpt2"), tmp_path / "model")
    # Long enough to be killed in.
    (tmp_path / "two.txt").write_text("\n".join(["it was the age of foolishness"] * 20_000))
    named = ["evaluate", str(tmp_path / "model"), "--tasks", ",".join(tasks), "--json"]
    child = subprocess.Popen([sys.executable, "-m", "laconic", *named], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not list(cache.glob("*.json")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    said, _ = child.communicate()
    assert child.returncode == -signal.SIGKILL and said == b""
    (entry,) = cache.glob("*.json")
    written = entry.read_bytes()
    (tmp_path / "two.txt").write_text("it was the age of foolishness")
    capsys.readouterr()
    assert status(named) == 0
    assert set(json.loads(capsys.readouterr().out)["results"]) == set(tasks)
    assert entry.read_bytes() == written and len(list(cache.glob("*.json"))) == 2
