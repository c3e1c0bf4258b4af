"""Trainings that cannot be: each refused in a sentence, before any work where the data and the names tell."""

from dataclasses import replace

import pytest

from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.recipe.checks import check_order
from laconic.recipe.flow import apply_steps
from laconic.recipe.parse import method_or_step
from laconic.recover import Correct, Distil, Finetune, Student
from tests.recover.ground import SHORT, corpus, data_for, lm_of


def test_a_classifier_without_a_pad_token_is_refused_before_anything() -> None:
    lm = lm_of("bert-classifier")
    lm.model.config.pad_token_id = None
    with pytest.raises(UserError, match="set pad_token_id"):
        Finetune().check(lm)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e38, float("inf")])
def test_a_learning_rate_that_trains_nothing(rate: float) -> None:
    with pytest.raises(UserError, match=r"finetune\.learning_rate must be (in \(0, 1\]|a finite number)"):
        method_or_step({"finetune": {"learning_rate": rate}}, "method")


def test_a_model_of_which_nothing_moves_is_refused() -> None:
    lm = lm_of("bert-classifier")
    with pytest.raises(UserError, match=r"Nothing of .* is left to train"):
        Finetune(**SHORT, freeze=("*",)).apply(lm, data_for(lm))
    assert all(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize(
    ("step", "change", "sentence"),
    [
        (Finetune(), {"corpus": None}, "needs the rows"),
        (Finetune(rows=100), {}, "rows must be at most 36"),
        (Finetune(), {"corpus": corpus(5)}, "too few for training"),
        (Finetune(freeze=("nothing*",)), {}, "matches no parameter"),
        (Distil(), {}, "has no teacher"),
        (Finetune(precision="fp16"), {}, r"finetune\.precision must be fp32 or bf16 on a CPU; got 'fp16'"),
    ],
)
def test_mistakes_are_named(step: Step, change: dict, sentence: str) -> None:
    lm = lm_of("bert-classifier")
    with pytest.raises(UserError, match=sentence):
        step.apply(lm, replace(data_for(lm), **change))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_hidden_layers": True}, "config does not fit .*: .*num_hidden_layers.* correct it"),
        ({"hidden_size": "x"}, "config does not fit .*: .*hidden_size.* correct it"),
        ({"num_hidden_layers": -1}, r"config\.num_hidden_layers must be at least 1; got -1"),
        ({"num_hidden_layers": 0}, r"config\.num_hidden_layers must be at least 1; got 0"),
        ({"hidden_size": 7}, "No model can be built with this configuration: .* correct it"),
        ({"num_attention_heads": 0}, "No model can be built with this configuration: .* correct it"),
    ],
)
def test_a_student_of_no_configuration_is_refused_by_the_check(config: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Student(config=config).check(lm_of("bert-classifier"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Distil(logits=0.0), "logits must be above 0"),
        (lambda: Distil(courses={"logit": "fade"}), "did you mean 'logits'"),
        (lambda: Finetune(lora=4, quantized="straight-through"), "quantized must be frozen"),
        (lambda: Finetune(learning_rate=0.0), r"learning_rate must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_before_anything(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_rows_without_labels_and_encoders_without_a_task() -> None:
    lm = lm_of("bert-classifier")
    data = data_for(lm)
    assert data.corpus is not None
    bare = replace(data.corpus, examples=tuple(replace(example, label=None) for example in data.corpus.examples))
    with pytest.raises(UserError, match="no labels"):
        Finetune().apply(lm, replace(data, corpus=bare))
    with pytest.raises(UserError, match="use 'distil'"):
        Finetune().apply(lm_of("bert-base"), data)


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Finetune(rows=100), "rows must be at most"),
        (Distil(freeze=("*nowhere*",)), "matches no parameter"),
        (Correct(held_out=0.9), "needs at least"),
    ],
)
def test_what_the_data_or_the_names_do_not_allow_is_found_before_the_first_step(
    step: Step, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_of("bert-classifier")
    first = Compress(method=Svd(multiple=1), keep=0.5)
    monkeypatch.setattr(Compress, "apply", lambda self, lm, data: pytest.fail("work was done"))
    data = replace(data_for(lm), batches=data_for(lm).batches[:1])
    with pytest.raises(UserError, match=sentence):
        check_order(lm.to_meta(), [first, step], ["first", "second"])
        apply_steps(lm, [first, step], data)
