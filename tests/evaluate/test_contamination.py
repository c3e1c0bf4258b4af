"""Rows that a model was made with are known, refused where they are the very file, and counted elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from laconic.calibrate.sources import read
from laconic.errors import UserError
from laconic.evaluate import calibration_sources, check_tasks, evaluate
from laconic.evaluate.contamination import check_disjoint, count_shared_rows
from laconic.model import LanguageModel
from laconic.report.evaluation import evaluation_remarks
from tests.evaluate.models import with_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file for each split, and a file beside it that shares a row with the training split."""
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "train.txt").write_text("it was\nof times\nwisdom")
    (tmp_path / "both" / "dev.txt").write_text("the age\na tale")
    (tmp_path / "other.txt").write_text("of times\ntwo cities\n wisdom ")
    return tmp_path


def made_of(folder: Path, data: str) -> LanguageModel:
    """A model with a recipe beside it."""
    (folder / "recipe.yaml").write_text(f"model: hub/name\ndata: {data}\n")
    return replace(with_tokenizer("gpt2"), source=str(folder))


def test_the_sources_of_a_model_are_those_of_its_recipe_and_of_the_model_before(tmp_path: Path) -> None:
    for name, model, data in (("one", "hub/name", "data: glue/sst2\n"), ("two", tmp_path / "one", ""),
                              ("three", tmp_path / "two", "data: builtin:pydoc\n")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(f"model: {model}\n{data}")
    assert calibration_sources(str(tmp_path / "three")) == ("builtin:pydoc", "glue/sst2")
    (tmp_path / "one" / "recipe.yaml").write_text("model: [")
    assert calibration_sources(str(tmp_path / "three")) == ("builtin:pydoc",)
    (tmp_path / "one" / "recipe.yaml").write_text(f"model: {tmp_path / 'three'}")
    assert calibration_sources(str(tmp_path / "three")) == ("builtin:pydoc",)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "one" / "recipe.yaml").write_text(f"model: {tmp_path / 'loop'}")
    assert calibration_sources(str(tmp_path / "three")) == ("builtin:pydoc",)
    assert calibration_sources("nowhere/at-all") == ()


def test_one_file_does_not_serve_both(folder: Path) -> None:
    file = str(folder / "both" / "dev.txt")
    (folder / "link.txt").symlink_to(file)
    for task, data in ((file, file), (file, str(folder / "link.txt")), (str(folder / "both"), file)):
        with pytest.raises(UserError, match=rf"'perplexity:{task}' would evaluate .* '{file}' serves both splits"):
            check_tasks([f"perplexity:{task}"], None, compared=False, calibration=(data,))
    with pytest.raises(UserError, match=r"'fidelity:.*' would evaluate the model on rows that it was calibrated on"):
        check_tasks([f"fidelity:{file}"], None, compared=True, calibration=(file,))
    with pytest.raises(UserError, match="serves both splits"):
        evaluate(made_of(folder, file), [f"perplexity:{file}"], cost=False)


def test_splits_of_one_source_are_apart(folder: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    for source in (str(folder / "both"), "builtin:pydoc", "glue/sst2", "nowhere.txt", "hub/name", "glue/mnli"):
        check_disjoint([("task", source)], (source,))


def test_rows_that_a_task_shares_with_the_calibration_are_counted_and_said(folder: Path) -> None:
    task, sources = f"perplexity:{folder / 'other.txt'}", (str(folder / "both"), "gone.txt", "builtin:pydoc")
    assert count_shared_rows(read(str(folder / "other.txt"), "dev"), sources) == {sources[0]: 2, "builtin:pydoc": 0}
    found = evaluate(made_of(folder, sources[0]), [task], cost=False).to_json()
    assert found["settings"][task]["calibration_rows"] == {sources[0]: 2}
    assert evaluation_remarks(found) == [
        f"2 of the 3 rows of {task} are also rows of {sources[0]}, which the model was calibrated on."
    ]
