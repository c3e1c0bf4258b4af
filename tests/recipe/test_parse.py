"""Recipes: what is written comes back, and every mistake is one sentence that begins with its place."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from laconic.calibrate.passes import Workload
from laconic.compress import Compress, Shorten, ShrinkHeads
from laconic.errors import UserError
from laconic.methods import KfacSvd, Svd
from laconic.recipe import read_recipe, recipe_from, write_recipe
from laconic.recipe.parse import method_or_step
from laconic.recipe.schema import key_of, with_plan

RECIPES = Path(__file__).resolve().parents[2] / "laconic" / "recipes"
FULL: dict[str, Any] = {
    "model": "some/model",
    "data": "glue/sst2",
    "samples": 16,
    "steps": [
        {"compress": {"method": "kfac-svd", "keep": 0.5, "allocate": "spectrum", "targets": ["ffn", "attention"]}},
        {"compress": {"method": {"svd": {"rank": 8}}}},
    ],
    "evaluate": {"tasks": ["glue/sst2"], "cost": True},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """FULL with the value at a dotted path replaced, or removed for `...`."""
    recipe = copy.deepcopy(FULL)
    here: Any = recipe
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        here = here[part]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return recipe


def test_every_shipped_recipe_parses() -> None:
    every = sorted(path for path in RECIPES.rglob("*") if path.is_file())
    shipped = [path for path in every if path.suffix == ".yaml" and path.parent.name != "studies"]
    assert len(shipped) == 55
    assert len([path for path in every if path not in shipped]) == 11, "a file there is not looked at"
    for path in shipped:
        recipe = read_recipe(path)
        assert recipe_from(yaml.safe_load(write_recipe(recipe))) == recipe


def test_the_dataclasses_are_the_schema() -> None:
    recipe = recipe_from(FULL)
    assert recipe.steps == (
        Compress(method=KfacSvd(), keep=0.5, allocate="spectrum", targets=("ffn", "attention")),
        Compress(method=Svd(rank=8)),
    )
    assert recipe.evaluate is not None and recipe.evaluate.tasks == ("glue/sst2",)


def test_a_step_that_reshapes_is_spelled_like_any_other() -> None:
    assert recipe_from(changed("steps.0", {"shrink-heads": {"keep": 0.75}})).steps[0] == ShrinkHeads(keep=0.75)
    recipe = recipe_from(changed("steps", [{"shrink-heads": {"size": 24, "multiple": 4}}]))
    assert recipe.steps == (ShrinkHeads(size=24, multiple=4),)
    assert recipe_from(yaml.safe_load(write_recipe(recipe))) == recipe


def test_blocks_are_spelled_by_number_and_by_stack() -> None:
    steps = [{"shorten": {"blocks": [3, "4.ffn"]}}, {"shorten": {"blocks": {"encoder": [1], "decoder": ["0.ffn", 2]}}},
             {"shorten": {"drop": {"encoder": 1}, "select": "greedy"}}]  # fmt: skip
    recipe = recipe_from(changed("steps", steps))
    assert recipe.steps[0] == Shorten(blocks=(3, "4.ffn"))
    assert recipe_from(yaml.safe_load(write_recipe(recipe))) == recipe
    # On the command line a list has commas of its own.
    line = method_or_step("shorten:blocks=[3, 4.ffn],replace=bias", "--method")
    assert line == Shorten(blocks=(3, "4.ffn"), replace="bias")


def test_budgets_of_time_and_errors_are_spelled_in_full() -> None:
    in_time = {"method": "svd", "keep": 0.5, "allocate": "spectrum", "currency": "latency", "workload": {"batch": 2}}
    by_error = {"method": "svd", "allocate": "threshold", "error": 0.01}
    recipe = recipe_from(changed("steps", [{"compress": in_time}, {"compress": by_error}]))
    first, second = recipe.steps
    assert isinstance(first, Compress) and first.workload == Workload(batch=2, length=128)
    assert isinstance(second, Compress) and second.error == 0.01
    written = yaml.safe_load(write_recipe(recipe))
    assert written["steps"][0]["compress"]["workload"] == {"batch": 2, "length": 128}
    assert recipe_from(written) == recipe


def test_what_is_written_comes_back() -> None:
    plan = {"a.b": {"svd": {"rank": 3}}, "c.d": "dense"}
    for spelled in (FULL, changed("steps.0.compress.keep", {"ffn": 0.5, "attention": 0.2}),
                    changed("steps.0.compress.plan", plan)):  # fmt: skip
        recipe = recipe_from(spelled)
        assert recipe_from(yaml.safe_load(write_recipe(recipe))) == recipe


def test_the_key_depends_on_what_decides_the_result_and_not_on_how_it_is_written() -> None:
    spelled_out = changed("steps.1.compress.method", "svd:rank=8")
    assert key_of(recipe_from(spelled_out)) == key_of(recipe_from(FULL))
    assert key_of(recipe_from(changed("seed", 1))) != key_of(recipe_from(FULL))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("steps.0.compress.keep", 2.0, "recipe.steps[0].compress.keep must be in (0, 1]; got 2.0."),
        ("steps.0.compress.keep", 0, "recipe.steps[0].compress.keep must be in (0, 1]; got 0."),
        ("steps.0.compress.keep", {"ffn": 1.5}, "recipe.steps[0].compress.keep.ffn must be in (0, 1]; got 1.5."),
        ("steps.0.compress.keep", "x", "recipe.steps[0].compress.keep must be a number"),
        ("steps.0.compress.keep", ..., "recipe.steps[0].compress: The method 'kfac-svd' needs a size"),
        ("steps.0.compress.keep", True, "recipe.steps[0].compress.keep must be a number, no truth value; got True."),
        ("steps.0.compress.keep", {"ffn": True}, "recipe.steps[0].compress.keep.ffn must be a number, no truth value"),
        (
            "steps.1.compress.method.svd.rank",
            True,
            "recipe.steps[1].compress.method.svd.rank must be a whole number, no truth value; got True.",
        ),
        ("steps.1.compress.method", "svd:rank=yes", "recipe.steps[1].compress.method.svd.rank must be a whole number"),
        ("samples", True, "recipe.samples must be a whole number, no truth value; got True."),
        ("seed", False, "recipe.seed must be a whole number, no truth value; got False."),
        ("seed", 2**32, f"recipe.seed must be in [0, {2**32 - 1}]; got {2**32}."),
        (
            "steps.1",
            {"finetune": {"learning_rate": float("inf")}},
            "recipe.steps[1].finetune.learning_rate must be in (0, 1]",
        ),
        ("steps.0.compress.targets", [], "recipe.steps[0].compress: targets must be a list of at least one group or"),
        ("label_order", [None], "recipe.label_order[0] must be true or false or a whole number or text; got None."),
        ("evaluate.cost", {"batch": []}, "recipe.evaluate.cost: batch must be a list of at least one whole number"),
        ("evaluate.cost", {"batch": [True]}, "recipe.evaluate.cost.batch[0] must be a whole number, no truth value"),
        ("steps.0.compress.kep", 1, "recipe.steps[0].compress: There is no key 'kep': did you mean 'keep'?"),
        ("steps.0.compress.method", "kfac", "recipe.steps[0].compress.method: There is no method 'kfac': did you mean"),
        ("steps.0.compress.method", ..., "recipe.steps[0].compress.method is missing"),
        (
            "steps.1.compress.method",
            "svd:rnk=3",
            "recipe.steps[1].compress.method: The method 'svd' has no",
        ),
        ("steps.1.compress.method", "svd:rank=0", "recipe.steps[1].compress.method.svd.rank must be in [1, ∞); got 0."),
        ("steps.0.compress.targets", "ffn", "recipe.steps[0].compress.targets must be a list; got 'ffn'."),
        (
            "steps.0.compress.allocate",
            "fair",
            "recipe.steps[0].compress.allocate must be 'uniform', 'spectrum', 'threshold', 'global', 'Q2_K', ",
        ),
        ("steps.0.compress.plan", {"a": "svdd"}, "recipe.steps[0].compress.plan, a: There is no method 'svdd'"),
        (
            "steps.0.compress.workload",
            {"batch": 0},
            "recipe.steps[0].compress.workload.batch must be in [1, ∞)",
        ),
        (
            "steps.0.compress.workload",
            {"rows": 1},
            "recipe.steps[0].compress.workload: There is no key 'rows': known are batch",
        ),
        ("steps.0.compress.workload", 8, "recipe.steps[0].compress.workload must be"),
        (
            "steps.0.compress.currency",
            "time",
            "recipe.steps[0].compress.currency must be 'bytes', 'parameters'",
        ),
        (
            "steps.0.compress.error",
            0.1,
            "recipe.steps[0].compress: error must be left out unless allocate is",
        ),
        ("steps.0.compress.error", -1, "recipe.steps[0].compress.error must be in (0, ∞); got -1."),
        ("steps.0", {"shrink-heads": {"keep": 2}}, "recipe.steps[0].shrink-heads.keep must be in (0, 1]; got 2."),
        ("steps.0", {"shrink-heads": {"size": 0}}, "recipe.steps[0].shrink-heads.size must be in [1, ∞); got 0."),
        (
            "steps.0",
            "shrink-heads",
            "recipe.steps[0].shrink-heads: The step 'shrink-heads' needs one size: give either",
        ),
        ("steps.0", {"compres": {}}, "recipe.steps[0]: There is no step 'compres': did you mean 'compress'?"),
        ("steps.0", "compress", "recipe.steps[0].compress.method is missing"),
        ("steps", [], "recipe.steps must be a list of steps"),
        ("samples", 0, "recipe.samples must be in [1, ∞); got 0."),
        ("sample", 3, "recipe: There is no key 'sample': did you mean 'samples'?"),
        ("labels", "mine", "recipe.labels must be 'auto', 'sampled', 'enumerated' or 'data'; got 'mine'."),
        ("model", ..., "recipe.model is missing"),
        ("model", None, "recipe.model must be text; got None."),
        ("evaluate.limit", 0, "recipe.evaluate.limit must be in [1, ∞); got 0."),
        ("evaluate.task", 0, "recipe.evaluate: There is no key 'task': did you mean 'tasks'?"),
    ],
)
def test_every_mistake_is_named_with_its_place(path: str, value: object, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        recipe_from(changed(path, value))


def test_overrides_reach_everything(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**FULL, "evaluate": None, "steps": ["compress", FULL["steps"][1]]}))
    recipe = read_recipe(
        path, ["samples=3", "steps[0].compress.method=drone", "steps[0].compress.keep=0.3", "evaluate.tasks=[glue/rte]"]
    )
    assert recipe.samples == 3
    first = recipe.steps[0]
    assert isinstance(first, Compress) and first.keep == 0.3 and first.method.name == "drone"
    assert recipe.evaluate is not None and recipe.evaluate.tasks == ("glue/rte",)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("samples", "An override must be key=value"),
        ("=3", "An override must be key=value"),
        ("steps[7].compress.keep=1", "recipe.steps[7].compress.keep, the index [7], must be below 2"),
        ("samples.x=1", "recipe.samples.x does not exist"),
        ("model[0]=1", "recipe.model[0] does not exist"),
        ("smples=1", "There is no key 'smples'"),
        ("samples=[", "recipe.samples must be a YAML value"),
    ],
)
def test_an_override_that_leads_nowhere_says_so(tmp_path: Path, override: str, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(FULL))
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_recipe(path, [override])


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not YAML"), ("", "must be a mapping"), ("3", "mapping")])
def test_a_file_that_is_no_recipe_says_so(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_recipe(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_recipe(tmp_path / "missing.yaml")


def test_a_plan_replaces_one_budget() -> None:
    plan = {"a.b": Svd(rank=3)}
    one = recipe_from({**FULL, "steps": FULL["steps"][:1]})
    step = with_plan(one, plan).steps[0]
    assert isinstance(step, Compress) and step.plan == plan and step.keep is None
    with pytest.raises(UserError, match="2 of them"):
        with_plan(recipe_from(FULL), plan)
