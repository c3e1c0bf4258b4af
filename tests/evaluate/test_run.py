"""The whole evaluation: names, sections of the JSON, determinism."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from laconic.errors import UserError
from laconic.evaluate import check_task, check_tasks, evaluate
from laconic.evaluate.eval_task import TaskResult
from laconic.evaluate.run import _differences
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.models import with_tokenizer
from tests.problems import MULTI_LABEL, classifier

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
    assert set(found) == {"results", "settings", "cost", "fidelity", "difference", "least_p", "detectable", "original"}
    assert set(found["results"][task]["perplexity"]) == {"value", "low", "high"}
    assert set(found["difference"][task]["perplexity"]) == {"value", "low", "high", "p"}
    assert found["least_p"][task]["perplexity"] == 2 / 2 ** len(WORDS)
    ours, theirs = (section["results"][task]["perplexity"]["value"] for section in (found, found["original"]))
    assert found["difference"][task]["perplexity"]["value"] == pytest.approx(ours - theirs)
    assert {"kl", "top1_agreement", "cosine"} <= set(found["fidelity"])
    depends = [found["fidelity"][name] for name in ("source", "split", "rows", "context", "seed")]
    assert depends == [text, "dev", 6, 40, 0]
    assert {"tokenizer", "versions"} <= set(found["fidelity"])
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
        ("perplexity", "The task 'perplexity' has no data source; write it as perplexity:SOURCE"),
        ("seq2seq:", "The task 'seq2seq' has no data source; write it as seq2seq:SOURCE, like seq2seq:dev.jsonl"),
        ("token-classification", "like token-classification:dev.conll"),
        ("multi-label:", "like multi-label:dev.jsonl"),
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


def test_a_task_for_another_kind_of_model_is_refused_before_a_model_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    check_task("perplexity:builtin:pydoc", BY_NAME["gpt2"].lm())
    with pytest.raises(
        UserError, match=r"'perplexity:builtin:pydoc' needs a causal model; the model is a masked model"
    ):
        check_task("perplexity:builtin:pydoc", BY_NAME["bert-masked"].lm())
    with pytest.raises(UserError, match="'glue/sst2' needs a model with num_labels 2; the model has 3; name another"):
        check_task("glue/sst2", BY_NAME["bert-classifier"].lm())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("bert-masked", "name a task for such models, like blimp, or compare it with its original: "),
        ("bert-base", "name a task for such models, like glue/stsb, or compare it with its original: "),
        ("t5", "name a task for such models, like seq2seq:SOURCE, or compare it with its original: "),
        ("multi-label", "name a task for such models, like multi-label:SOURCE, or compare it with its original: "),
    ],
)
def test_the_remedies_for_another_kind_of_model_are_some_that_it_can_take(name: str, remedy: str):
    lm = classifier(2, problem_type=MULTI_LABEL) if name == "multi-label" else BY_NAME[name].lm()
    whole = f"model; {remedy}laconic evaluate MODEL --against ORIGINAL --tasks fidelity:SOURCE."
    for compared in (False, True):
        with pytest.raises(UserError, match=rf"needs a causal model; .* {re.escape(whole)}$"):
            check_tasks(["perplexity:builtin:pydoc"], lm, compared=compared)


def test_fidelity_needs_an_original_and_one_source(text: str):
    check_tasks([f"fidelity:{text}"], BY_NAME["bert-masked"].lm(), compared=True)
    for refused in (check_task, lambda name: evaluate(with_tokenizer("gpt2"), [name])):
        with pytest.raises(UserError, match=r"'fidelity:builtin:pydoc' needs an original .* --against ORIGINAL"):
            refused("fidelity:builtin:pydoc")
    with pytest.raises(UserError, match=r"There is no data 'nowhere\.txt'"):
        check_tasks(["fidelity:nowhere.txt"], None, compared=True)
    with pytest.raises(UserError, match="The models are compared on one source; name one of fidelity:a, fidelity:b"):
        check_tasks(["fidelity:a", "fidelity:b"], None, compared=True)


@pytest.mark.parametrize("name", ["bert-masked", "bert-base", "gpt2", "bart"])
def test_a_model_without_a_task_is_compared_on_rows_that_are_named(name: str, text: str):
    lm, original = compress_everything(with_tokenizer(name), rank=6), with_tokenizer(name)
    found = evaluate(lm, [f"fidelity:{text}"], limit=4, against=original, cost=False).to_json()
    assert found["results"] == {} == found["difference"]
    assert found["fidelity"]["kl"] > 0
    assert (found["fidelity"]["source"], found["fidelity"]["rows"]) == (text, 4)


def test_the_rows_named_for_fidelity_come_before_those_of_a_task(text: str, tmp_path: Path):
    (tmp_path / "other.txt").write_text("wisdom\nof times")
    lm, other = with_tokenizer("gpt2"), str(tmp_path / "other.txt")
    found = evaluate(lm, [f"perplexity:{text}", f"fidelity:{other}"], against=lm, cost=False).to_json()
    assert found["fidelity"]["source"] == other
    assert list(found["results"]) == [f"perplexity:{text}"] == list(found["difference"])


def test_without_a_task_the_cost_alone_is_measured():
    lm = with_tokenizer("bert-masked")
    assert set(evaluate(lm, []).to_json()) == {"results", "settings", "cost"}
    compared = evaluate(lm, [], against=lm).to_json()
    assert compared["original"]["cost"]["bytes"] == compared["cost"]["bytes"]
    assert "fidelity" not in compared


def test_tables_of_other_rows_are_not_compared():
    table = np.zeros((2, 1))
    ours, theirs = (TaskResult(table, {}, {}, rows) for rows in ((0, 1), (1, 2)))
    with pytest.raises(UserError, match="their tokenizers leave out different rows"):
        _differences("seq2seq:x", ours, theirs)


def test_no_task_and_no_rows_are_refused(text: str):
    with pytest.raises(UserError, match="No task was given"):
        evaluate(with_tokenizer("gpt2"), [], cost=False)
    with pytest.raises(UserError, match="limit must be at least 1 row; got 0"):
        evaluate(with_tokenizer("gpt2"), [f"perplexity:{text}"], limit=0)
