"""Each choice is a sequence of its own; padding changes nothing, and what has no choices is refused."""

from dataclasses import replace

import pytest
import torch

from laconic.calibrate.batching import batches, check_readable
from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.model import LanguageModel, predict
from tests.task_models import CHOICE, TASK_MODELS
from tests.tokens import letters


def lm_of(family: str = "bert") -> LanguageModel:
    return replace(TASK_MODELS[f"{family}-{CHOICE.value}"].lm(), tokenizer=letters())


def row(text: str, *choices: str, label: float | str | None = None, place: str = "") -> Example:
    return Example(text, choices=choices, label=label, place=place)


def corpus_of(*examples: Example) -> Corpus:
    return Corpus("choices", "train", examples)


ROWS = corpus_of(row("boil it", "in a pot", "in a net", label=0.0), row("a", "b", "cde", label=1.0))


def test_a_batch_has_the_tokens_of_each_choice():
    [batch] = batches(lm_of(), ROWS, labelled=True)
    assert batch["input_ids"].shape[:2] == (2, 2) and batch["labels"].tolist() == [0, 1]
    mask = batch["attention_mask"][1, 1].bool()
    encoded = letters()("a", "cde")
    assert batch["input_ids"][1, 1][mask].tolist() == encoded["input_ids"]
    assert batch["token_type_ids"][1, 1][mask].tolist() == encoded["token_type_ids"]
    assert "labels" not in batches(lm_of(), ROWS)[0]


@pytest.mark.parametrize("family", ["bert", "distilbert", "longformer"])
def test_padding_does_not_change_predictions(family: str):
    lm = lm_of(family)
    with torch.no_grad():
        single = torch.cat([predict(lm, batch)[0].values for batch in batches(lm, ROWS, batch_size=1)])
        together = predict(lm, batches(lm, ROWS)[0])[0].values
    assert together.shape == (2, 2)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (Example("a", label=0.0, place="a:2"), r"a:2 has no choices, and the model needs choices and labels, such as"),
        (row("a", "b", "c", label=2.0, place="a:2"), r"a:2 has the label 2 and 2 choices; the label must be the index"),
        (row("a", "b", "c", label="F", place="a:2"), r"a:2 has the label 'F' and 2 choices"),
        (row("a", "b", "c", label=-1.0, place="a:2"), r"a:2 has no label \(-1 means none\)"),
    ],
)
def test_a_wrong_label_is_named_with_its_place(example: Example, sentence: str):
    with pytest.raises(UserError, match=sentence):
        batches(lm_of(), corpus_of(ROWS.examples[0], example), labelled=True)


def test_rows_without_choices_are_refused():
    with pytest.raises(UserError, match=r"a:1 has no choices, and the model chooses one of several texts; give data"):
        check_readable(lm_of(), corpus_of(Example("a", place="a:1")))
    with pytest.raises(UserError, match=r"Row 2 has 3 choices, and row 1 has 2; give all rows the same number"):
        batches(lm_of(), corpus_of(row("a", "b", "c"), row("a", "b", "c", "d")))
