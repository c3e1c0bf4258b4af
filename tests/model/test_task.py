"""The task of a model follows from its class and its problem type."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import laconic
from laconic.errors import UserError
from laconic.formats import LowRank
from laconic.model import ModelTask
from laconic.model.task import infer_task
from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN
from tests.architectures import BY_NAME
from tests.model.embedding.sentence_transformers_reference import installed_package
from tests.problems import MULTI_LABEL, classifier
from tests.sentences import pooling, sentence_folder


@pytest.mark.parametrize(
    ("outputs", "problem_type", "task"),
    [
        (1, None, ModelTask.REGRESSION),
        (3, None, ModelTask.CLASSIFICATION),
        (3, "single_label_classification", ModelTask.CLASSIFICATION),
        (3, MULTI_LABEL, ModelTask.MULTI_LABEL),
        # The sigmoid of one output is a label that holds or does not.
        (1, MULTI_LABEL, ModelTask.MULTI_LABEL),
        (1, "regression", ModelTask.REGRESSION),
        (2, "regression", ModelTask.REGRESSION),
        # One class would always be right; transformers itself refuses to read it.
        (1, "single_label_classification", ModelTask.REGRESSION),
    ],
)
def test_the_problem_type_says_what_a_head_predicts(outputs: int, problem_type: str | None, task: ModelTask) -> None:
    assert classifier(outputs, problem_type=problem_type).task is task


def test_every_task_has_its_distribution() -> None:
    bernoulli, gaussian = {ModelTask.MULTI_LABEL}, {ModelTask.REGRESSION, ModelTask.EMBEDDING}
    for task in ModelTask:
        expected = BERNOULLI if task in bernoulli else GAUSSIAN if task in gaussian else CATEGORICAL
        assert task.distribution is expected


def test_an_unknown_problem_type_and_a_head_without_outputs_are_named() -> None:
    model = classifier(2).model
    model.config.problem_type = "multilabel"
    with pytest.raises(UserError, match=r"one of single_label_classification, .* or left out; got 'multilabel'"):
        infer_task(model)
    model.config.problem_type, model.config.id2label = None, {}
    with pytest.raises(UserError, match=r"has no output: num_labels in its config\.json is 0"):
        infer_task(model)


@pytest.mark.parametrize("given", [nn.Linear(2, 2), None])
def test_what_is_no_model_of_transformers_is_one_sentence(given: Any) -> None:
    with pytest.raises(UserError, match=f"hub name; got an object of the class {type(given).__name__}\\.$"):
        laconic.compress(given, "svd", keep=0.5)


def test_a_model_inside_of_another_module_is_named() -> None:
    outer: Any = nn.DataParallel(BY_NAME["bert-base"].model())
    with pytest.raises(UserError, match=r"DataParallel; give the BertModel in.*get_submodule\('module'"):
        laconic.compress(outer, "svd", keep=0.5)
    small = laconic.compress(outer.get_submodule("module"), "svd", keep=0.5).model
    assert any(isinstance(part, LowRank) for part in small.modules())


def test_an_adapter_in_memory_is_to_be_merged() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(BY_NAME["bert-base"].model(), peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(UserError, match=r"give what its merge_and_unload\(\) returns"):
        laconic.compress(model, "svd", keep=0.5)
    small = laconic.compress(model.merge_and_unload(), "svd", keep=0.5).model
    assert any(isinstance(part, LowRank) for part in small.modules())


def test_a_sentence_transformer_in_memory_names_what_is_compressed(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")])
    with installed_package() as package:
        model = package.SentenceTransformer(str(folder), device="cpu")
        with pytest.raises(UserError, match=r"SentenceTransformer; give the BertModel .* get_submodule\('0\.model'\)"):
            laconic.compress(model, "svd", keep=0.5)
        assert model.get_submodule("0.model") is model.transformers_model
