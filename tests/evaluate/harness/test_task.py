"""A task on local files gives what the harness gives by itself on the hub's rows."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate import check_task, check_tasks, evaluate
from laconic.evaluate.harness import Harness
from laconic.evaluate.harness.local import find_task_file
from laconic.model import LanguageModel, load
from laconic.progress import silent
from laconic.store import save
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.harness.conftest import hub
from tests.evaluate.models import with_tokenizer
from tests.tokens import letters

pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")

TASKS = {"boolq": {"acc"}, "piqa": {"acc", "acc_norm"}, "winogrande": {"acc"}}


def alone(lm: LanguageModel, task: str, monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> dict[str, Any]:
    """The harness by itself, on what it loads from the hub."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, **_: hub(path))
    # It would look for drivers, compilers and packages, for seconds.
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    model = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=2)
    manager = TaskManager(include_defaults=False, include_path=str(find_task_file(task).parent))
    found = evaluator.simple_evaluate(model=model, tasks=[task], task_manager=manager, limit=limit)
    assert found is not None
    return dict(found)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("task", TASKS)
def test_results_are_those_of_the_harness_by_itself(model: str, task: str, monkeypatch: pytest.MonkeyPatch):
    lm = with_tokenizer(model)
    name = f"harness/{task}"
    found = evaluate(lm, [name], cost=False).to_json()
    expected = alone(lm, task, monkeypatch)
    own, settings = expected["results"][task], found["settings"][name]
    assert set(found["results"][name]) == TASKS[task]
    for metric, figure in found["results"][name].items():
        assert figure["value"] == pytest.approx(own[f"{metric},none"])
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert settings["harness"]["results"][task] == pytest.approx(own)
    assert settings["harness"]["versions"][task] == expected["versions"][task]
    judged = Harness(task).evaluate(lm, Harness(task).load_corpus(None), silent)
    samples = expected["samples"][task]
    assert judged.table.tolist() == [[sample[metric] for metric in sample["metrics"]] for sample in samples]


@pytest.mark.usefixtures("data")
def test_prompts_are_those_of_the_harness_by_itself(monkeypatch: pytest.MonkeyPatch):
    for task in TASKS:
        corpus = Harness(task).load_corpus(None)
        arguments = [
            sample["arguments"][0] for sample in alone(with_tokenizer("gpt2"), task, monkeypatch)["samples"][task]
        ]
        assert corpus.examples == tuple(Example(prompt, target=answer.strip()) for prompt, answer in arguments)
    assert Harness("boolq").load_corpus(1).examples[0].text.startswith("tale -- it was the best")


@pytest.mark.usefixtures("data")
def test_a_task_that_writes_its_answers(monkeypatch: pytest.MonkeyPatch):
    lm = with_tokenizer("t5")
    found = evaluate(lm, ["harness/boolq-seq2seq"], limit=2, cost=False).to_json()
    own = alone(lm, "boolq-seq2seq", monkeypatch, limit=2)["results"]["boolq-seq2seq"]
    value = found["results"]["harness/boolq-seq2seq"]["exact_match"]["value"]
    assert value == own["exact_match,none"]
    with pytest.raises(UserError, match="writes up to 256 tokens after a prompt, and the model has a context of 40"):
        evaluate(with_tokenizer("gpt2"), ["harness/boolq-seq2seq"], limit=1, cost=False)


@pytest.mark.usefixtures("data")
def test_a_tokenizer_without_an_end_is_told_before_the_harness_falls_over_it():
    lm = replace(with_tokenizer("gpt2"), tokenizer=letters("none", bos_token=None, eos_token=None))
    with pytest.raises(UserError, match=r"no token for the end of a text \(eos_token\), which 'harness/boolq' needs"):
        evaluate(lm, ["harness/boolq"], limit=1, cost=False)
    # One of the beginning is enough, but for a task that writes.
    begins = replace(lm, tokenizer=letters("none", eos_token=None))
    assert evaluate(begins, ["harness/boolq"], limit=1, cost=False).results["harness/boolq"]
    with pytest.raises(UserError, match=r"which 'harness/boolq-seq2seq' needs"):
        evaluate(begins, ["harness/boolq-seq2seq"], limit=1, cost=False)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("model", ["llama-tied", "t5"])
def test_a_compressed_model_is_judged_and_compared(model: str, tmp_path: Path):
    save(with_tokenizer(model), tmp_path / "dense")
    save(compress_everything(with_tokenizer(model), rank=4), tmp_path / "small")
    small, dense = load(str(tmp_path / "small")), load(str(tmp_path / "dense"))
    found = evaluate(small, ["harness/piqa"], against=dense, cost=False).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    ours, theirs = (section["results"]["harness/piqa"]["acc"]["value"] for section in (found, found["original"]))
    change = found["difference"]["harness/piqa"]["acc"]
    assert change["value"] == pytest.approx(ours - theirs)
    assert found["fidelity"]["kl"] > 0 and found["fidelity"]["rows"] == 4
    assert evaluate(small, ["harness/piqa"], cost=False).to_json()["results"] == found["results"]


@pytest.mark.usefixtures("data")
def test_settings_say_what_the_figures_depend_on():
    found = evaluate(with_tokenizer("gpt2"), ["harness/boolq"], limit=3, cost=False).settings["harness/boolq"]
    wanted = {
        "source": "boolq/dev.jsonl",
        "split": "validation",
        "rows": 3,
        "context": 40,
        "few_shot": 0,
        "batch": 16,
        "requests": 6,
        # No passage with its question fits in 40 letters.
        "cut_on_the_left": 6,
        "answers_cut": 0,
        "special_tokens": ["<s>"],
    }
    assert {name: found[name] for name in wanted} == wanted
    assert {"tokenizer", "seeds", "versions"} <= set(found)
    assert found["harness"]["n-samples"]["boolq"] == {"original": 5, "effective": 3}
    assert "custom_dataset" not in found["harness"]["configs"]["boolq"]


def test_an_answer_longer_than_the_context_is_cut_too(data: Path):
    goals = [{"goal": "a", "sol1": "abcdef" * 10, "sol2": "b"}, {"goal": "a", "sol1": "c", "sol2": "d"}]
    (data / "piqa" / "dev.jsonl").write_text("".join(f"{json.dumps(goal)}\n" for goal in goals))
    (data / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    for model in ("gpt2", "bart"):
        settings = evaluate(with_tokenizer(model), ["harness/piqa"], cost=False).settings["harness/piqa"]
        assert (settings["requests"], settings["answers_cut"], settings["context"]) == (4, 1, 40)


@pytest.mark.usefixtures("data")
def test_nothing_is_left_changed_and_nothing_is_said(capfd: pytest.CaptureFixture[str]):
    lm = with_tokenizer("llama")
    assert lm.tokenizer is not None
    lm.tokenizer.pad_token = None
    lm.model.train()
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    capfd.readouterr()
    evaluate(lm, ["harness/piqa"], cost=False)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert lm.model.training and lm.tokenizer.pad_token is None
    assert random.getstate() == drawn[0] and np.random.get_state()[1].tolist() == drawn[1]
    assert torch.equal(torch.get_rng_state(), drawn[2])


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("name", ["bert-masked", "bert-classifier", "bert-base"])
def test_an_encoder_is_refused_before_it_is_loaded(name: str):
    check_task("harness/boolq", BY_NAME["gpt2"].lm())
    lm = BY_NAME[name].lm()
    with pytest.raises(UserError, match=rf"'harness/boolq' needs a causal or seq2seq model; .* {lm.task.value} model"):
        check_task("harness/boolq", lm)
    with pytest.raises(UserError, match="is a masked model"):
        Harness("boolq").evaluate(with_tokenizer("bert-masked"), Corpus("x", "dev", (Example("a"),)), silent)


@pytest.mark.usefixtures("data")
def test_a_model_of_two_vocabularies_is_refused():
    lm = replace(with_tokenizer("bart"), target_tokenizer=letters())
    with pytest.raises(UserError, match="'harness/boolq' reads and scores with one tokenizer"):
        evaluate(lm, ["harness/boolq"], cost=False)


@pytest.mark.usefixtures("data")
def test_rows_decide_what_a_kept_score_is_of(data: Path):
    before = Harness("piqa").load_corpus(None)
    assert before == Harness("piqa").load_corpus(None) != Harness("piqa").load_corpus(2)
    (data / "piqa" / "dev-labels.lst").write_text("1\n1\n0\n1\n")
    after = Harness("piqa").load_corpus(None)
    assert after.examples == before.examples and after.digest != before.digest


def test_metrics_of_a_kept_table(data: Path):
    judge, lm = Harness("piqa"), with_tokenizer("gpt2")
    judged = judge.evaluate(lm, judge.load_corpus(None), silent)
    kept = judge.metrics(json.loads(json.dumps(dict(judged.settings))))
    assert {name: of(judged.table) for name, of in kept.items()} == {
        name: of(judged.table) for name, of in judged.metrics.items()
    }


@pytest.mark.parametrize(("task", "rows"), [("boolq", 3270), ("piqa", 1838), ("winogrande", 1267)])
def test_real_models_on_real_rows(
    task: str, rows: int, shared_models: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    name = f"harness/{task}"
    found = evaluate(load(str(shared_models / "mico-tinyllama-1m")), [name], limit=4, cost=False).settings[name]
    assert found["harness"]["n-samples"][task] == {"original": rows, "effective": 4}
    assert (found["context"], found["special_tokens"]) == (256, ["<s>"])
    # The title that SuperGLUE has put before the first passage.
    assert task != "boolq" or Harness(task).load_corpus(1).examples[0].text.startswith(
        "Ethanol fuel -- All biomass goes"
    )


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_a_task_that_lets_the_model_write_runs_where_the_model_has_a_cache(
    runtime: str, data: Path, shared_models: Path
):
    tokenizer = AutoTokenizer.from_pretrained(str(shared_models / "mico-tinyllama-1m"))
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1}
    llama = LlamaConfig(**sizes, intermediate_size=8, num_attention_heads=1, max_position_embeddings=1024)
    check_tasks(
        ["harness/boolq-seq2seq"],
        LanguageModel.of(LlamaForCausalLM(llama), tokenizer),
        compared=False,
        runtime=runtime,
        load=lambda task: task.load_corpus(1),
    )


@pytest.mark.filterwarnings("ignore:The architecture 'mamba'")
def test_a_model_without_keys_and_values_writes_only_in_torch(data: Path, shared_models: Path):
    tokenizer = AutoTokenizer.from_pretrained(str(shared_models / "mico-tinyllama-1m"))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1))
    with pytest.raises(UserError, match="cache"):
        check_tasks(
            ["harness/boolq-seq2seq"], LanguageModel.of(mamba, tokenizer), compared=False, runtime="onnx",
            load=lambda task: task.load_corpus(1),
        )  # fmt: skip
