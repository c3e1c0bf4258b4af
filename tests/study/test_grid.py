"""Studies: what YAML spells becomes cells, and every mistake is one sentence that begins with its place."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from laconic.compress import Compress, Narrow
from laconic.errors import UserError
from laconic.recover import Finetune, Student
from laconic.study import Cell, cells_of, read_study, study_from

AXES = {"model": ["some/model"], "method": ["svd"], "keep": [0.5]}


def cells(axes: dict[str, Any], **more: Any) -> list[Cell]:
    return cells_of(study_from({"axes": axes, **more}, Path()))


def compressed(axes: dict[str, Any], **more: Any) -> list[Cell]:
    return [cell for cell in cells(axes, **more) if not cell.baseline]


def test_the_cells_are_the_product_of_the_axes_and_a_baseline() -> None:
    found = cells({**AXES, "method": ["svd", "drone"], "keep": [0.5, 0.8], "seed": [0, 1]}, data="glue/sst2")
    assert [cell.baseline for cell in found] == [True] + [False] * 8
    assert found[0].axes == {"model": "model", "method": "original", "keep": None, "seed": None}
    labels = {tuple(cell.axes.values()) for cell in found[1:]}
    assert labels == {("model", m, k, s) for m in ("svd", "drone") for k in (0.5, 0.8) for s in (0, 1)}
    assert len({cell.key for cell in found}) == 9
    # What reads no data has none, so that its key does not hang on it.
    assert {cell.recipe.data for cell in found if cell.axes["method"] == "svd"} == {None}
    assert {cell.recipe.data for cell in found if cell.axes["method"] == "drone"} == {"glue/sst2"}


def test_keys_of_cells_without_plugins_do_not_change() -> None:
    axes = {"model": ["m"], "method": ["svd"], "keep": [0.5]}
    assert [cell.key for cell in cells(axes, data="d")] == ["2f2cd87b189fa136", "8af0902ce0ae195f"]
    found = cells(axes, data="d", tasks=["glue/sst2"], prepare=[{"finetune": {}}])
    assert [cell.key for cell in found] == ["efbc834762a8678c", "7e0a68c23f49ae0d"]
    assert {cell.preparation_key for cell in found} == {"6bb83510e8f08c82"}


def test_points_can_be_left_out_and_added() -> None:
    axes = {**AXES, "method": ["svd", "fwsvd"], "keep": [0.5, 0.8]}
    found = compressed(
        axes, data="d", exclude=[{"method": "svd", "keep": 0.8}], include=[{"method": "svd", "keep": 0.1}]
    )
    assert {(cell.axes["method"], cell.axes["keep"]) for cell in found} == {
        ("svd", 0.5), ("fwsvd", 0.5), ("fwsvd", 0.8), ("svd", 0.1),
    }  # fmt: skip


def test_an_axis_may_be_a_parameter_of_the_methods() -> None:
    found = compressed({"model": ["m"], "method": ["rtn", {"zeros": "magnitude:sparsity=0.5"}], "bits": [4, 2]})
    assert [(cell.axes["method"], cell.axes["bits"]) for cell in found] == [("rtn", 4), ("rtn", 2), ("zeros", None)]
    step = found[1].recipe.steps[0]
    assert isinstance(step, Compress) and getattr(step.method, "bits", None) == 2


def test_models_with_experts_may_be_compressed_without_these() -> None:
    for allowed in (False, True):
        (cell,) = compressed(AXES, allow_dense=allowed)
        (step,) = cell.recipe.steps
        assert isinstance(step, Compress) and step.allow_dense is allowed


def test_steps_are_methods_too_and_others_may_follow() -> None:
    then = ["none", {"trained": [{"finetune": {"epochs": 2}}]}]
    found = compressed({"model": ["m"], "method": ["narrow"], "heads": [0.5], "then": then}, data="d")
    assert [cell.axes["then"] for cell in found] == ["nothing", "trained"]
    assert found[0].recipe.steps == (Narrow(heads=0.5),)
    assert found[1].recipe.steps == (Narrow(heads=0.5), Finetune(epochs=2))
    assert [cell.family for cell in found] == ["width", "width"]


def test_several_methods_in_order_are_a_combination() -> None:
    (cell,) = compressed({"model": ["m"], "method": [["magnitude:sparsity=0.5", "rtn:bits=4"]]})
    assert cell.axes["method"] == "magnitude:sparsity=0.5 + rtn:bits=4"
    assert cell.family == "combination" and len(cell.recipe.steps) == 2


def test_a_way_to_share_a_budget_means_nothing_where_no_method_has_one(tmp_path: Path) -> None:
    axes = {"model": ["m"], "method": ["svd", "svd:rank=4"], "keep": [0.5], "allocate": ["uniform", "spectrum"]}
    found = compressed(axes, data="d")
    assert {(cell.axes["method"], cell.axes["allocate"]) for cell in found} == {
        ("svd", "uniform"),
        ("svd", "spectrum"),
        ("svd:rank=4", "uniform"),
    }
    steps = "[{compress: {method: svd, keep: 0.5}}, {compress: {method: {rtn: {bits: 4}}}}]"
    (tmp_path / "one.yaml").write_text(f"model: m\ndata: d\nsteps: {steps}\n")
    study = study_from({"axes": {"recipe": ["one.yaml"], "allocate": ["spectrum"]}}, tmp_path)
    (cell,) = [cell for cell in cells_of(study) if not cell.baseline]
    ways = [step.allocate for step in cell.recipe.steps if isinstance(step, Compress)]
    assert ways == ["spectrum", "uniform"]


def test_every_task_has_its_data_and_its_baseline() -> None:
    found = cells({**AXES, "method": ["drone"], "task": ["glue/sst2", "glue/rte"]})
    assert [cell.recipe.data for cell in found if not cell.baseline] == ["glue/sst2", "glue/rte"]
    assert [cell.axes["task"] for cell in found if cell.baseline] == ["glue/sst2", "glue/rte"]


def test_neighbours_share_what_is_costly_to_find_out() -> None:
    axes = {"model": ["b/m", "a/m"], "keep": [0.5, 0.25], "method": ["drone", "fwsvd"], "seed": [0, 1]}
    found = cells(axes, data="d")
    assert [cell.baseline for cell in found] == ([True] + [False] * 8) * 2
    for place in (
        [cell.recipe.model for cell in found],
        [cell.context_key for cell in found if not cell.baseline],
        [(cell.context_key, cell.axes["method"]) for cell in found if not cell.baseline],
    ):
        assert len(list(groupby(place))) == len(set(place)), "each in one run"


def test_a_model_may_be_prepared_for_each_task_in_its_own_way() -> None:
    axes = {**AXES, "task": ["glue/rte", "glue/stsb"]}
    own = {"glue/stsb": [{"finetune": {"epochs": 2}}], "others": [{"student": {"classes": 2}}, {"finetune": {}}]}
    found = cells(axes, prepare=own)
    ways = {cell.axes["task"]: cell.prepare for cell in found}
    assert ways == {
        "glue/rte": (Student(classes=2), Finetune()),
        "glue/stsb": (Finetune(epochs=2),),
    }
    assert {cell.recipe.data for cell in found} == {"glue/rte", "glue/stsb"}
    # Where a task has no line and there is none for the others, or an empty one, it begins with the model as it is.
    for some in ({"glue/stsb": own["glue/stsb"]}, {**own, "glue/rte": []}):
        ways = {cell.axes["task"]: cell.prepare for cell in cells(axes, prepare=some)}
        assert ways == {"glue/rte": (), "glue/stsb": (Finetune(epochs=2),)}
    assert {cell.prepare for cell in cells(axes, prepare=[])} == {()}


def test_a_prepared_model_is_another_for_every_seed() -> None:
    prepared = cells({**AXES, "seed": [0, 1]}, data="d", prepare=[{"finetune": {}}])
    assert len([cell for cell in prepared if cell.baseline]) == 2
    assert len({cell.preparation for cell in prepared if cell.preparation}) == 2
    assert not {cell.key for cell in prepared} & {cell.key for cell in cells({**AXES, "seed": [0, 1]}, data="d")}


def test_recipes_are_an_axis_and_lie_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("model: m\nsteps: [{compress: {method: svd, keep: 0.5}}]\n")
    (tmp_path / "study.yaml").write_text("axes: {recipe: [one.yaml], keep: [0.25, 0.5]}\n")
    found = [cell for cell in cells_of(read_study(tmp_path / "study.yaml")) if not cell.baseline]
    assert [(cell.axes["recipe"], cell.axes["keep"]) for cell in found] == [("one", 0.25), ("one", 0.5)]
    steps = [cell.recipe.steps[0] for cell in found]
    assert [step.keep for step in steps if isinstance(step, Compress)] == [0.25, 0.5]


def test_the_seed_of_a_recipe_stands_where_the_study_has_none(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("model: m\nseed: 3\nsteps: [{compress: {method: svd, keep: 0.5}}]\n")
    for more, seeds in (({}, [3]), ({"seed": [0, 1]}, [0, 1])):
        found = cells_of(study_from({"axes": {"recipe": ["one.yaml"], **more}}, tmp_path))
        assert [cell.recipe.seed for cell in found if not cell.baseline] == seeds


STUDIES = sorted((Path(__file__).parents[2] / "laconic" / "recipes" / "studies").iterdir())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_has_cells(path: Path) -> None:
    found = cells_of(read_study(path))
    assert len(found) > 5 and len({cell.key for cell in found}) == len(found)


def test_values_can_be_given_anew(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("axes: {model: [m], method: [svd], keep: [0.25, 0.5]}\n")
    found = cells_of(read_study(tmp_path / "study.yaml", ["axes.keep=[0.75]", "limit=3"]))
    assert [cell.axes["keep"] for cell in found] == [None, 0.75]
    assert {cell.recipe.evaluate.limit for cell in found if cell.recipe.evaluate} == {3}


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        ({"axes": {**AXES, "keep": [1, 50]}}, r"study\.axes\.keep\[1\] must be in \(0, 1\]; got 50\. Did you mean 0"),
        ({"axes": {**AXES, "seed": [0, 2**32]}}, r"study\.axes\.seed\[1\] must be at most 4294967295; got 4294967296"),
        ({"axes": AXES, "targets": []}, r"study\.targets must be at least one group or glob; got \[\]"),
        ({"axes": AXES, "label_order": {"x": ["a", "b"]}}, r"study\.label_order: This study has no model 'x'"),
        ({"axes": {**AXES, "keep": []}}, r"study\.axes\.keep must be a list of at least one value"),
        ({"axes": {**AXES, "method": ["svdd"]}}, r"study\.axes\.method\[0\]: .*did you mean 'svd'"),
        ({"axes": {**AXES, "bitts": [4]}}, r"study\.axes\.bitts: There is no axis 'bitts': did you mean 'bits'"),
        ({"axes": {**AXES, "seed": [0, -1]}}, r"study\.axes\.seed\[1\] must be a whole number from 0 on; got -1"),
        ({"axes": {**AXES, "keep": [0.5, 0.5]}}, r"study\.axes\.keep\[1\] must be a value that occurs once"),
        ({"axes": {**AXES, "allocate": ["spectrumm"]}}, r"study\.axes\.allocate\[0\]: .*did you mean 'spectrum'"),
        ({"axes": {"method": ["svd"], "keep": [0.5]}}, r"study\.axes\.model is missing"),
        ({"axes": {"model": ["m"]}}, r"study\.axes must have either the axis method or the axis recipe"),
        ({"axes": {**AXES, "method": ["svd:rank=4"]}}, r"study\.axes\.keep applies to none of the methods"),
        ({"axes": {"model": ["m"], "method": ["svd"]}}, r"study\.axes at model m, method svd: .*needs a size"),
        ({"axes": {"model": ["m"], "method": ["rtn"], "bits": [40]}}, r"study\.axes\.method\[0\]\.rtn\.bits must be"),
        ({"axes": AXES, "exclude": [{"keep": 0.7}]}, r"study\.exclude\[0\]\.keep: .*known are 0\.5"),
        ({"axes": AXES, "exclude": [{"seed": 0}]}, r"study\.exclude\[0\]: This study has no axis 'seed'"),
        ({"axes": AXES, "exclude": [{"keep": 0.5}]}, r"study\.exclude excludes all cells"),
        ({"axes": AXES, "sample": 4}, r"study\.sample: There is no key 'sample': did you mean 'samples'"),
        ({"axes": AXES, "samples": 0}, r"study\.samples must be in \[1, ∞\)"),
        ({"axes": AXES, "mlflow": 5}, r"study\.mlflow must be true or false or text; got 5"),
        ({"axes": AXES, "cost": "yes, please"}, r"study\.cost must be true or false or a mapping; got 'yes"),
        ({"axes": {**AXES, 5: [1]}}, r"study\.axes\.5: There is no axis '5'"),
        ({"axes": AXES, "exclude": [{"method": {"svd": {}}}]}, r"study\.exclude\[0\]\.method: There is no value '\{"),
        ({"axes": AXES, "exclude": [{"keep": [[0.5]]}]}, r"study\.exclude\[0\]\.keep: There is no value '\[0\.5\]'"),
        ({"axes": AXES, "cost": {"lenght": [64]}}, r"study\.cost: There is no key 'lenght': did you mean 'length'"),
        ({"axes": AXES, "cost": {"batch": [1, 0]}}, r"study\.cost\.batch\[1\] must be in \[1, ∞\); got 0"),
        ({"axes": AXES, "prepare": {"glue/rte": []}}, r"study\.prepare must be a list of steps, where the study has"),
        ({"axes": {**AXES, "task": ["glue/rte"]}, "prepare": {"rt": []}}, r"study\.prepare: .*known are glue/rte, ot"),
        ({"axes": {**AXES, "task": ["glue/rte"]}, "prepare": {"others": 3}}, r"study\.prepare\.others must be a list"),
        ({}, r"study\.axes is missing"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_place(study: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        cells_of(study_from(study, Path()))
