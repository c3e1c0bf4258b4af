"""Models that tag words, answer questions, choose and give several labels are compressed and evaluated on files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import laconic
from laconic.calibrate.corpus import Answer
from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.report.study.groups import quality_measure
from tests.calibrate.files import write
from tests.problems import MULTI_LABEL, classifier
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TOKENS
from tests.tokens import letters

TEXTS = (
    "a tale of two cities",
    "it was the best of times",
    "the worst of times",
    "an age of wisdom",
    "far away",
    "hope",
)
TAGS = ("O", "B-PER", "I-PER")


@dataclass(frozen=True)
class Case:
    """A kind of head: its model, a file of rows, a row that is wrong, and the sentence about it."""

    task: str
    lm: LanguageModel
    name: str
    rows: list[dict[str, Any]]
    wrong: dict[str, Any]
    sentence: str
    metrics: tuple[str, ...]


def tokens() -> Case:
    lm = TASK_MODELS[f"bert-{TOKENS.value}"].lm()
    lm.model.config.id2label = dict(enumerate(TAGS))
    rows = [{"tokens": text.split(), "ner_tags": [TAGS[len(word) % 3] for word in text.split()]} for text in TEXTS]
    wrong = {"tokens": ["a"], "ner_tags": ["B-LOC"]}
    metrics = ("f1", "precision", "recall", "accuracy")
    return Case(TOKENS.value, lm, "a.jsonl", rows, wrong, ", word 1 has the label 'B-LOC', which is none of", metrics)


def answers() -> Case:
    rows = [{"question": "who", "context": text, "answers": [{"text": text[:3], "answer_start": 0}]} for text in TEXTS]
    rows[1]["answers"] = []
    wrong = {"question": "who", "context": "ada", "answers": [Answer("byron", 0)._asdict()]}
    found = " has the answer 'byron', which is not in its context"
    metrics = ("f1", "exact_match", "f1/answerable", "exact_match/answerable", "exact_match/unanswerable")
    return Case(ANSWER.value, TASK_MODELS[f"bert-{ANSWER.value}"].lm(), "a.jsonl", rows, wrong, found, metrics)


def choices() -> Case:
    rows = [{"text": text, "choices": [text[2:6], text[:4], "x"], "label": len(text) % 3} for text in TEXTS]
    wrong = {"text": "a", "choices": ["b", "c"], "label": 0}
    lm = TASK_MODELS[f"bert-{CHOICE.value}"].lm()
    return Case(CHOICE.value, lm, "a.jsonl", rows, wrong, " has 2 choices, and .*:1 3; give all", ("accuracy",))


def several_labels() -> Case:
    lm = classifier(3, problem_type=MULTI_LABEL)
    lm.model.config.id2label = {0: "joy", 1: "anger", 2: "fear"}
    rows = [{"text": text, "labels": [["joy"], [], ["fear", "anger"]][at % 3]} for at, text in enumerate(TEXTS)]
    wrong = {"text": "a", "labels": ["envy"]}
    metrics = ("f1_micro", "f1_macro", "accuracy")
    return Case(
        "multi-label", lm, "a.jsonl", rows, wrong, " has the label 'envy', which is none of the classes", metrics
    )


@pytest.mark.parametrize("make", [tokens, answers, choices, several_labels])
def test_a_head_is_compressed_and_evaluated_on_a_file(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    case = make()
    case.lm.model.save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    train, dev = (write(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, case.rows))) for name in ("one", "two"))
    small = laconic.compress(tmp_path / "model", "kfac-svd:rank=4", data=train, output=tmp_path / "small")
    assert small.bytes < small.dense_bytes
    task = f"{case.task}:{dev}"
    found = laconic.evaluate(tmp_path / "small", task, against=tmp_path / "model", batch=1, length=8).to_dict()
    assert tuple(found["results"][task]) == tuple(found["difference"][task]) == case.metrics
    for metric, value in found["results"][task].items():
        change = found["difference"][task][metric]
        assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        assert change["low"] <= change["value"] <= change["high"] and 0 < change["p"] <= 1
        assert quality_measure(task, metric).to_text(0.5) == "50.0%"
    assert found["fidelity"]["kl"] > 0 and found["fidelity"]["predictions"] >= len(TEXTS)
    # A wrong row is refused with its line.
    bad = write(tmp_path / "bad.jsonl", "\n".join(map(json.dumps, [*case.rows * 2, case.wrong])))
    with pytest.raises(UserError, match=rf"bad\.jsonl:13{case.sentence}"):
        laconic.evaluate(tmp_path / "model", f"{case.task}:{bad}")
    with pytest.raises(UserError, match=rf"bad\.jsonl:13{case.sentence}"):
        laconic.compress(tmp_path / "model", "finetune", data=bad)
