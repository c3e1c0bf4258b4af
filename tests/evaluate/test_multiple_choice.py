"""The accuracy of multiple choice is that of running each row alone."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score

from laconic.calibrate.corpus import Corpus, Example
from laconic.evaluate.multiple_choice import MultipleChoice
from laconic.evaluate.paired import difference
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.task_models import CHOICE, TASK_MODELS
from tests.tokens import letters

TASK = MultipleChoice("a.jsonl")
PARTS = (
    "a tale",
    "of two cities",
    "it was",
    "the best",
    "of times",
    "wisdom",
    "an age",
    "of hope",
    "x",
    "far, far away",
)


def rows() -> tuple[Example, ...]:
    return tuple(
        Example(text, choices=(PARTS[at - 1], PARTS[at - 2], PARTS[at - 3]), label=float(at % 3))
        for at, text in enumerate(PARTS)
    )


@torch.no_grad()
def predicted(lm: LanguageModel, example: Example) -> int:
    """The choice with the largest logit, each choice run alone."""
    kinds = ("input_ids", "token_type_ids") if lm.model.config.type_vocab_size > 1 else ("input_ids",)
    scores = []
    for choice in example.choices:
        encoded = letters()(example.text, choice)
        inputs = {kind: torch.tensor([[encoded[kind]]]) for kind in kinds}
        scores.append(float(lm.model(**inputs).logits))
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_task_equals_scoring_by_hand(family: str):
    lm = replace(TASK_MODELS[f"{family}-{CHOICE.value}"].lm(), tokenizer=letters())
    result = TASK.evaluate(lm, Corpus("choices", "dev", rows()), silent)
    found = [predicted(lm, row) for row in rows()]
    assert result.table.tolist() == [[row.label, choice] for row, choice in zip(rows(), found, strict=True)]
    accuracy = result.metrics["accuracy"]
    assert accuracy(result.table) == pytest.approx(accuracy_score([row.label for row in rows()], found))
    assert result.settings["choices"] == 3
    assert difference(accuracy, result.table, result.table).p == 1
