"""Labels of data meet the classes of models in every verb; what does not match is said before weights are loaded."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import laconic
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.model import LanguageModel, load
from laconic.recipe import recipe_from, run
from laconic.recover import Finetune
from laconic.study import cells_of, check_cells, study_from
from tests.architectures import BY_NAME
from tests.problems import MULTI_LABEL, classifier
from tests.recover.ground import SHORT

TEXTS = ("a tale of two cities", "it was", "the best of times", "of times", "the worst", "an age", "of wisdom", "it is")
TRAIN = {**SHORT, "epochs": 1.0, "held_out": 2}
FINETUNE = {"finetune": TRAIN}
SVD = {"compress": {"method": "fwsvd:multiple=1", "keep": 0.5}}


def saved(lm: LanguageModel, folder: Path) -> str:
    assert lm.tokenizer is not None
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def swapped(lm: LanguageModel, names: tuple[str, ...]) -> LanguageModel:
    """The same classifier with its outputs, of these names, in the opposite order."""
    other = classifier(2, names)
    other.model.load_state_dict(lm.model.state_dict())
    with torch.no_grad():
        for name in ("classifier.weight", "classifier.bias"):
            other.model.get_parameter(name).copy_(lm.model.get_parameter(name).flip(0))
    return other


def data(folder: Path, label: Callable[[int], Any]) -> str:
    """Forty rows, each with its label."""
    folder.mkdir(exist_ok=True)
    rows = ({"text": f"{TEXTS[at % 8]} {TEXTS[at * 3 % 7]}", "label": label(at)} for at in range(40))
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


NAMES = ("negative", "positive")


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["laconic.recipe.entry"], "load", lambda *_: pytest.fail("weights were loaded"))


def test_the_same_classifier_in_another_order_is_trained_and_measured_alike(tmp_path: Path) -> None:
    source = data(tmp_path / "data", lambda at: NAMES[at % 3 // 2])
    plain = classifier(2, NAMES)
    heads = []
    for number, lm in enumerate((plain, swapped(plain, ("POS", "NEG")))):
        recipe = {"model": saved(lm, tmp_path / f"{number}"), "data": source, "labels": "data", "samples": 16}
        out = tmp_path / f"out-{number}"
        run(recipe_from({**recipe, "steps": [SVD, {"finetune": {**TRAIN, "checkpoint": "last"}}]}), out)
        heads.append(load(str(out)).model)
    for name in ("classifier.weight", "classifier.bias"):
        ours, theirs = (model.get_parameter(name) for model in heads)
        torch.testing.assert_close(ours, theirs.flip(0), rtol=1e-4, atol=1e-6)
        # Labels that were read the wrong way round would have moved it elsewhere.
        assert not torch.allclose(ours, plain.model.get_parameter(name), rtol=1e-3)


def test_a_student_learns_of_a_teacher_of_another_order_and_of_labels(tmp_path: Path) -> None:
    teacher = classifier(2, ("Neg", "Pos"))
    source = data(tmp_path / "data", lambda at: at % 2)
    student = swapped(teacher, ("positive", "negative"))
    recipe = {
        "model": saved(student, tmp_path / "student"), "data": source, "samples": 8,
        "steps": [{"distil": {**TRAIN, "teacher": saved(teacher, tmp_path / "teacher")}}],
    }  # fmt: skip
    found = run(recipe_from(recipe), tmp_path / "out").changes.found[0]["distil"]["lines"]
    before = next(line["eval_loss"] for line in found if "eval_loss" in line)
    # They say the same already.
    assert before == pytest.approx(0, abs=1e-7)


MISTAKES: list[tuple[tuple[str, ...] | None, Callable[[int], Any], dict[str, Any], str]] = [
    (NAMES, lambda at: None, FINETUNE, r"recipe\.steps\[0\]\.finetune: The train split of '.*' has no labels"),
    (NAMES, lambda at: -1, FINETUNE, "has no labels"),
    (
        NAMES,
        lambda at: None if at == 16 else 0,
        FINETUNE,
        r"train\.jsonl:17 has no label, and of \d+ rows \d+ have one",
    ),
    (
        NAMES,
        lambda at: 7 if at == 16 else 0,
        FINETUNE,
        r"train\.jsonl:17 has the label 7, which is none of the classes",
    ),
    (NAMES, lambda at: "positive" if at == 16 else 0, FINETUNE, r"train\.jsonl:17 'positive'; call the classes of all"),
    (("good", "bad"), lambda at: NAMES[at % 2], FINETUNE, r"has the classes good, bad, and '.*' has (posi|nega)tive, "),
    (None, lambda at: NAMES[at % 2], SVD, r"has the classes LABEL_0, LABEL_1, and '.*' has (posi|nega)tive, "),
    (NAMES, lambda at: "Paris", SVD, r"has the classes negative, positive, and '.*' has Paris, which do not match"),
]


@pytest.mark.parametrize(("names", "label", "step", "sentence"), MISTAKES)
def test_labels_that_cannot_be_are_named_before_weights_are_loaded(
    names, label, step, sentence: str, tmp_path: Path, never_loaded: None
) -> None:
    recipe = {
        "model": saved(classifier(2, names), tmp_path / "model"), "data": data(tmp_path / "data", label),
        "labels": "data", "samples": 40, "steps": [step],
    }  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        run(recipe_from(recipe), tmp_path / "out")


@pytest.mark.parametrize("label", [lambda at: "Paris", lambda at: None, lambda at: at - 1.5])
def test_labels_that_nobody_needs_are_not_read(label, tmp_path: Path) -> None:
    recipe = {
        "model": saved(classifier(2, NAMES), tmp_path / "model"), "data": data(tmp_path / "data", label),
        "samples": 8, "steps": [SVD, {"distil": TRAIN}],
    }  # fmt: skip
    assert run(recipe_from(recipe), tmp_path / "out").file_bytes > 0


def test_an_order_says_which_output_is_which(tmp_path: Path) -> None:
    source, model = data(tmp_path / "data", lambda at: ("bad", "good")[at % 3 // 2]), classifier(2)
    numbered = data(tmp_path / "numbers", lambda at: 1 - at % 3 // 2)
    recipe = {"model": saved(model, tmp_path / "model"), "samples": 8, "steps": [FINETUNE]}
    run(recipe_from({**recipe, "data": source, "label_order": ["good", "bad"]}), tmp_path / "named")
    # The same by the numbers of the outputs.
    run(recipe_from({**recipe, "data": numbered}), tmp_path / "numbered")
    named, by_number = (load(str(tmp_path / name)).model.state_dict() for name in ("named", "numbered"))
    assert all(torch.equal(tensor, by_number[name]) for name, tensor in named.items())
    assert yaml.safe_load((tmp_path / "named" / "recipe.yaml").read_text())["label_order"] == ["good", "bad"]
    compressed = laconic.compress(
        str(tmp_path / "model"), Finetune(**TRAIN), data=source, label_order=["good", "bad"], samples=8
    ).model
    assert all(torch.equal(tensor, named[name]) for name, tensor in compressed.state_dict().items())


def test_yaml_reads_no_and_yes_as_truth_values_which_are_names_all_the_same(tmp_path: Path) -> None:
    recipe = yaml.safe_load(f"""
        model: {saved(classifier(2), tmp_path / "model")}
        data: {data(tmp_path / "data", lambda at: ("no", "yes")[at % 2])}
        label_order: [yes, no]
        steps: [finetune: {{held_out: 2, epochs: 0.5}}]
    """)
    run(recipe_from(recipe), tmp_path / "out")
    assert recipe_from(recipe).label_order == (True, False)


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (["a"], "label_order must name each of the 2 outputs of '.*' once, in their order; got a"),
        (["a", "b"], r"label_order has the classes a, b, and '.*' has (posi|nega)tive"),
    ],
)
def test_an_order_that_does_not_fit_is_named(
    order: list[str], sentence: str, tmp_path: Path, never_loaded: None
) -> None:
    recipe = {
        "model": saved(classifier(2), tmp_path / "model"), "data": data(tmp_path / "data", lambda at: NAMES[at % 2]),
        "label_order": order, "steps": [FINETUNE],
    }  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        run(recipe_from(recipe), tmp_path / "out")


def test_an_order_is_for_models_that_tell_classes_apart(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    BY_NAME["bert-base"].model().save_pretrained(tmp_path / "plain")
    recipe = {
        "model": str(tmp_path / "plain"),
        "label_order": ["a", "b"],
        "steps": [{"compress": {"method": "rtn:bits=8"}}],
    }
    with pytest.raises(UserError, match=r"label_order applies to models that classify texts or tokens, and '.*' is of"):
        run(recipe_from(recipe), tmp_path / "out")


def test_a_student_with_names_learns_what_the_data_calls_so(tmp_path: Path) -> None:
    source, longer = data(tmp_path / "data", lambda at: ["joy", "anger"]), {**TRAIN, "epochs": 4.0}
    recipe = {
        "model": saved(classifier(2), tmp_path / "model"), "data": source, "samples": 8, "labels": "auto",
        "steps": [{"student": {"classes": ["joy", "anger"], "problem_type": MULTI_LABEL}}, {"finetune": longer}],
    }  # fmt: skip
    lines = run(recipe_from(recipe), tmp_path / "out").changes.found[1]["finetune"]["lines"]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    # Two labels, of which a fresh head says nothing.
    assert min(losses) < losses[0] == pytest.approx(2 * math.log(2), rel=0.01)
    config = load(str(tmp_path / "out")).model.config
    assert (config.id2label, config.problem_type) == ({0: "joy", 1: "anger"}, MULTI_LABEL)


def test_a_student_of_other_classes_than_its_teacher_is_refused_before_weights_are_loaded(
    tmp_path: Path, never_loaded: None
) -> None:
    other = saved(classifier(2, ("good", "bad")), tmp_path / "other")
    recipe = {
        "model": saved(classifier(2, NAMES), tmp_path / "model"), "data": data(tmp_path / "data", lambda at: None),
        "steps": [{"student": {"model": other}}, {"distil": TRAIN}],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"recipe\.steps\[1\]\.distil.* has the classes good, bad, and .* has negative"):
        run(recipe_from(recipe), tmp_path / "out")


def test_evaluate_takes_an_order_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    rows = "\n".join(f"{text}\t{at % 2}" for at, text in enumerate(TEXTS))
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    plain = classifier(2)
    models = [saved(lm, tmp_path / str(at)) for at, lm in enumerate((plain, swapped(plain, ("good", "bad"))))]

    def judged(model: str, *more: str) -> Any:
        code = status(["evaluate", model, "--tasks", "glue/sst2", "--length", "8", "--batch", "1", "--json", *more])
        said = capsys.readouterr()
        return json.loads(said.out) if code == 0 else said.err

    expected = judged(models[0])
    assert expected["settings"]["glue/sst2"]["classes"] == ["negative", "positive"]
    assert "has the classes good, bad, and 'glue/sst2' has negative, positive" in judged(models[1])
    assert "--label-order must name each of the 2 outputs" in judged(models[1], "--label-order", "positive")
    for order in ("positive,negative", "1,0"):
        found = judged(models[1], "--label-order", order, "--against", models[0])
        assert found["results"] == expected["results"] == found["original"]["results"]
        assert found["fidelity"]["kl"] == pytest.approx(0, abs=1e-9) and found["fidelity"]["top1_agreement"] == 1
    # Of an original that is called alike the order is the same.
    assert judged(models[1], "--label-order", "pos,neg", "--against", models[1])["fidelity"]["kl"] == 0


def test_compress_takes_an_order_from_the_command_line(tmp_path: Path) -> None:
    source, model = data(tmp_path / "data", lambda at: ("bad", "good")[at % 2]), saved(classifier(2), tmp_path / "m")
    step = "finetune:held_out=2,epochs=0.5"
    given = ["compress", model, "--method", step, "--data", source, "-o", str(tmp_path / "out")]
    assert status(given) == 2
    assert status([*given, "--label-order", "good,bad"]) == 0
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["label_order"] == ["good", "bad"]


def test_a_study_has_an_order_for_all_models_or_by_model(tmp_path: Path) -> None:
    source = data(tmp_path / "data", lambda at: ("bad", "good")[at % 2])
    models = [saved(classifier(2), tmp_path / name) for name in ("one", "two")]
    spelled = {
        "axes": {"model": models, "method": [FINETUNE]}, "data": source, "tasks": ["fidelity:builtin:pydoc"],
        "labels": "data",
    }  # fmt: skip
    with pytest.raises(UserError, match="has the classes LABEL_0, LABEL_1, and"):
        check_cells(cells_of(study_from(spelled, tmp_path)))
    for order in (["good", "bad"], {"one": ["good", "bad"], "two": ["bad", "good"]}):
        cells = cells_of(study_from({**spelled, "label_order": order}, tmp_path))
        found = {(cell.axes["model"], cell.baseline): cell.recipe.label_order for cell in cells}
        second = order["two"] if isinstance(order, dict) else order
        assert found == {
            ("one", True): ("good", "bad"), ("one", False): ("good", "bad"),
            ("two", True): tuple(second), ("two", False): tuple(second),
        }  # fmt: skip
