"""`laconic methods` lists methods and steps and shows one; `laconic --version`."""

import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from laconic.api.inputs import read_document
from laconic.catalogue import catalogue
from laconic.cli.main import status
from laconic.cli.options import keep_from
from laconic.errors import DISTRIBUTION
from laconic.model import load_empty
from laconic.recipe import parse_recipe
from laconic.recipe.catalogue import BUILTINS
from laconic.recipe.checks import check_order
from laconic.recipe.flow import to_steps
from laconic.recipe.parse import STEPS, method_or_step
from tests.cli.printed import Output, complaint, said


def test_methods_lists_all_of_them(capsys: Output) -> None:
    said_of = said(capsys, "methods")
    listed = said_of["methods"]
    assert {method["name"] for method in listed} >= {"svd", "fwsvd", "drone", "kfac-svd"}
    assert all(method["paper"] and method["what"] for method in listed)
    assert {step["name"] for step in said_of["steps"]} == {step.name for step in STEPS} - {"compress"}
    assert status(["methods"]) == 0 and "kfac-svd" in capsys.readouterr().out


@pytest.mark.parametrize("name", BUILTINS)
def test_methods_shows_one_with_an_example_that_is_one(name: str, capsys: Output, tiny_model: Path) -> None:
    shown = said(capsys, "methods", name)
    assert shown["name"] == name and shown["what"]
    assert all(one["meaning"] and one["type"] for one in shown["parameters"])
    assert status(["methods", name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert shown["what"] in printed and all(one["name"] in printed for one in shown["parameters"])
    assert f"Example: {shown['example']}" in printed
    if name == "compress":
        # `--method` does not take it; the example is a line of a recipe.
        steps = read_document({"model": "MODEL", **yaml.safe_load(shown["example"])}, "recipe", {})
        assert parse_recipe(steps.text, steps.path, steps.overrides).steps
        return
    arguments = shlex.split(shown["example"])
    given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    keep, allocate = keep_from(given.get("--keep")), given.get("--allocate", "uniform")
    steps = to_steps([method_or_step(given["--method"], "--method")], keep, allocate, ("ffn",))
    assert any(step.needs_data for step in steps) <= ("--data" in given)
    check_order(load_empty(str(tiny_model)), steps, ["--method"])


def test_methods_shows_families_and_whether_steps_need_data(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {step["name"]: step for step in said(capsys, "methods")["steps"]}
    assert (steps["narrow"]["family"], steps["narrow"]["needs_data"]) == ("width", True)
    assert (steps["student"]["family"], steps["student"]["needs_data"]) == ("student", False)
    assert said(capsys, "methods", "shorten")["family"] == "depth"
    monkeypatch.setenv("COLUMNS", "80")
    assert status(["methods"]) == 0
    words = capsys.readouterr().out.split()
    statistics = {name for entry in catalogue().values() for name in entry.needs}
    assert set(catalogue()) - {"compress"} <= set(words) and statistics <= set(words)
    assert status(["methods", "narrow"]) == 0 and "\nNeeds: data\n" in capsys.readouterr().out
    assert status(["methods", "compress"]) == 0 and "required" in capsys.readouterr().out


def test_examples_can_be_copied(capsys: Output) -> None:
    assert said(capsys, "methods", "gptq")["example"] == (
        "laconic compress MODEL --method gptq:bits=4 --data builtin:pydoc -o OUT"
    )
    assert said(capsys, "methods", "compress")["example"] == "steps: [{compress: {method: svd, keep: 0.5}}]"
    assert " 'student:blocks=[0]' " in said(capsys, "methods", "student")["example"]


def test_methods_tells_types_defaults_and_what_each_is_for(capsys: Output) -> None:
    parameters = {one["name"]: one for one in said(capsys, "methods", "gptq")["parameters"]}
    assert parameters["bits"] == {
        "name": "bits", "type": "a whole number in [2, 8]", "default": "none",
        "meaning": "bits of each code; in place of `keep`.",
    }  # fmt: skip
    assert parameters["group_size"]["type"] == "a whole number in [1, ∞) or channel or tensor"
    assert (parameters["act_order"]["type"], parameters["act_order"]["default"]) == ("true or false", "true")
    assert said(capsys, "methods", "kmeans")["parameters"][1]["meaning"].startswith("weights that share a table")
    (needed,) = [one for one in said(capsys, "methods", "compress")["parameters"] if one["default"] is None]
    assert needed["name"] == "method"


@pytest.mark.parametrize("given", ["gtpq", "gtpq:bits=4", "Gptq", "gptq4"])
def test_the_nearest_name_is_said(given: str, capsys: Output) -> None:
    name = given.partition(":")[0]
    assert complaint(capsys, "methods", given).startswith(f"There is no method or step '{name}': did you mean 'gptq'?")


@pytest.mark.parametrize("given", ["svd:rank=3", "svd:", "svd=3", "svd,gptq", "svd(rank=3)", "svd rank=3"])
def test_parameters_do_not_belong_to_a_name(given: str, capsys: Output) -> None:
    assert complaint(capsys, "methods", given) == (
        f"NAME must be a name without parameters; got '{given}'; parameters are for `laconic compress --method`, and "
        "`laconic methods svd` lists them."
    )


def test_the_version_is_shown_with_what_figures_depend_on(capsys: Output) -> None:
    assert status(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"laconic {version(DISTRIBUTION)} " + (
        f"(python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')})"
    )


def test_a_flag_may_be_repeated(capsys: Output) -> None:
    assert status(["methods", "--json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]
