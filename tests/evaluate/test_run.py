"""The whole evaluation: names, sections of the JSON, determinism."""

import json
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.evaluate import check_task, evaluate
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer

WORDS = ("a tale of two cities", "it was", "the best of times, it was the worst", "of times", "wisdom", "the age")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS))
    return str(path)


def test_the_json_has_every_section(text: str):
    task = f"perplexity:{text}"
    lm, original = compress_everything(with_tokenizer("gpt2"), rank=6), with_tokenizer("gpt2")
    found = evaluate(lm, [task], against=original).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"results", "settings", "cost", "fidelity", "difference", "original"}
    assert set(found["results"][task]["perplexity"]) == {"value", "low", "high"}
    assert set(found["difference"][task]["perplexity"]) == {"value", "low", "high", "p"}
    ours, theirs = (section["results"][task]["perplexity"]["value"] for section in (found, found["original"]))
    assert found["difference"][task]["perplexity"]["value"] == pytest.approx(ours - theirs)
    assert {"kl", "top1_agreement", "cosine"} <= set(found["fidelity"])
    assert {"parameters", "bytes", "memory_bytes", "latency", "machine"} <= set(found["cost"])
    assert found["cost"]["bytes"] < found["original"]["cost"]["bytes"]
    settings = found["settings"][task]
    assert (settings["source"], settings["split"], settings["rows"], settings["seed"]) == (text, "dev", 6, 0)
    assert {"context", "stride", "tokenizer", "versions"} <= set(settings)


def test_figures_alone_and_the_first_rows(text: str):
    lm = with_tokenizer("gpt2")
    found = evaluate(lm, [f"perplexity:{text}"], limit=2, cost=False)
    assert set(found.to_json()) == {"results", "settings"}
    assert found.settings[f"perplexity:{text}"]["rows"] == 2
    assert found.to_json() == evaluate(lm, [f"perplexity:{text}"], limit=2, cost=False).to_json()


def test_a_model_compared_with_itself_has_not_changed(text: str):
    lm = with_tokenizer("gpt2")
    found = evaluate(lm, [f"perplexity:{text}"], against=lm, cost=False).to_json()
    for change in found["difference"][f"perplexity:{text}"].values():
        assert change == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert found["fidelity"]["kl"] == 0 and found["fidelity"]["top1_agreement"] == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("glue/sst3", "There is no GLUE task 'sst3': did you mean 'sst2'"),
        ("perplexty:builtin:pydoc", "There is no task 'perplexty:builtin:pydoc'"),
        ("perplexity", "The task 'perplexity' lacks its text; name it as perplexity:SOURCE"),
        ("seq2seq:", "The task 'seq2seq' lacks its text"),
        ("perplexity:nowhere.txt", "There is no data 'nowhere.txt'"),
        ("sst2", "There is no task 'sst2': did you mean 'glue/sst2'"),
    ],
)
def test_an_unknown_task_is_refused_before_a_model_is_needed(name: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_task(name)


def test_known_tasks_pass():
    check_task("perplexity:builtin:pydoc")
    check_task("seq2seq:builtin:pydoc")


def test_no_task_and_no_rows_are_refused(text: str):
    with pytest.raises(UserError, match="No task was given"):
        evaluate(with_tokenizer("gpt2"), [])
    with pytest.raises(UserError, match="limit must be at least 1 row; got 0"):
        evaluate(with_tokenizer("gpt2"), [f"perplexity:{text}"], limit=0)
