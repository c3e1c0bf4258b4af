"""Names of tasks are found without the harness's index, and agree with it."""

from importlib.util import find_spec

import pytest

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import check_task
from laconic.evaluate.harness import local
from laconic.evaluate.harness.local import find_task_file

pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")


def test_names_are_those_of_the_harness():
    from lm_eval.tasks import TaskManager

    for task in ("boolq", "winogrande", "mmlu_anatomy", "blimp_adjunct_island"):
        folder = find_task_file(task).parent
        index = TaskManager(include_defaults=False, include_path=str(folder)).task_index
        for name in TaskManager(include_defaults=False, include_path=str(folder)).all_subtasks:
            assert find_task_file(name) == index[name].yaml_path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("harness/bolq", r"The harness has no task 'bolq': did you mean 'harness/boolq'\? `lm_eval ls subtasks` lists"),
        ("harness/", "The harness has no task ''"),
        ("harness/mmlu", "'harness/mmlu' is a group of the harness's tasks; name single tasks of it"),
        ("harness/humaneval", "'harness/humaneval' runs code that the model writes"),
        ("harness/mmmu_val_art", "'harness/mmmu_val_art' uses images or audio"),
        ("harness/hellaswag", "The data 'Rowan/hellaswag' is no local file and cannot be loaded from the hub"),
    ],
)
def test_what_cannot_be_asked_is_named(name: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_task(name)


def test_without_local_files_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    files = "LACONIC_DATA/piqa/dev.jsonl and LACONIC_DATA/piqa/dev-labels.lst"
    with pytest.raises(
        UserError, match=f"There is no {files}, and the data set cannot be read from the hub: The data 'baber/piqa'"
    ):
        check_task("harness/piqa")


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch, capsys, tiny_model):
    monkeypatch.setattr(local, "find_spec", lambda name: None if name == "lm_eval" else find_spec(name))
    capsys.readouterr()
    assert status(["evaluate", str(tiny_model), "--tasks", "harness/boolq"]) == 2
    said = capsys.readouterr().err
    assert said == "The harness's tasks need lm_eval, not installed here: pip install 'laconic-lm[harness]'.\n"
