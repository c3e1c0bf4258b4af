"""What a model predicts, by its class and its problem type."""

import pytest

from laconic.errors import UserError
from laconic.model import Task
from laconic.model.task import task_of
from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN
from tests.problems import MULTI_LABEL, classifier


@pytest.mark.parametrize(
    ("outputs", "problem_type", "task"),
    [
        (1, None, Task.REGRESSION),
        (3, None, Task.CLASSIFICATION),
        (3, "single_label_classification", Task.CLASSIFICATION),
        (3, MULTI_LABEL, Task.MULTI_LABEL),
        # The sigmoid of one output is a label that holds or does not.
        (1, MULTI_LABEL, Task.MULTI_LABEL),
        (1, "regression", Task.REGRESSION),
        (2, "regression", Task.REGRESSION),
        # One class would always be right; transformers itself refuses to read it.
        (1, "single_label_classification", Task.REGRESSION),
    ],
)
def test_the_problem_type_says_what_a_head_predicts(outputs: int, problem_type: str | None, task: Task) -> None:
    assert classifier(outputs, problem_type=problem_type).task is task


def test_every_task_has_its_distribution() -> None:
    bernoulli, gaussian = {Task.MULTI_LABEL}, {Task.REGRESSION, Task.EMBEDDING}
    for task in Task:
        expected = BERNOULLI if task in bernoulli else GAUSSIAN if task in gaussian else CATEGORICAL
        assert task.distribution is expected


def test_an_unknown_problem_type_and_a_head_without_outputs_are_named() -> None:
    model = classifier(2).model
    model.config.problem_type = "multilabel"
    with pytest.raises(UserError, match=r"one of single_label_classification, .* or left out; got 'multilabel'"):
        task_of(model)
    model.config.problem_type, model.config.id2label = None, {}
    with pytest.raises(UserError, match=r"has no output: num_labels in its config\.json is 0"):
        task_of(model)
