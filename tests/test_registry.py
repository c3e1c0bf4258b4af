"""Plug-ins are found by their metadata when a name is looked up; what is wrong with one is a sentence that names it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.methods import Method, Svd
from laconic.methods.registry import METHOD_REGISTRY, parse_method
from laconic.recipe.parse import STEP_REGISTRY, method_or_step, steps_from
from laconic.registry import plugins

Install = Callable[..., None]
METHOD = """
from dataclasses import dataclass
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import svd_components

@dataclass(frozen=True, kw_only=True)
class Own(TruncationMethod):
    '''A method of the test's own.

    power: what it is raised to.
    '''

    name, paper, needs = "own", "none", frozenset()
    power: int = 2

    def components(self, weight, known):
        return svd_components(weight)

own = Own()
class Other(Own):
    name = "other"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Install:
    """Installs a distribution with entry points and one module, as pip leaves them."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def put(distribution: str, module: str = METHOD, **groups: str) -> None:
        name = f"{distribution.replace('-', '_')}_of_{abs(hash(request.node.name))}"
        (site / f"{name}.py").write_text(module)
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"[laconic.{group}]\n{points.replace('MODULE', name)}\n" for group, points in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return put


def test_a_method_of_a_plugin_is_found_as_soon_as_it_is_installed(install: Install) -> None:
    with pytest.raises(UserError, match="There is no method 'own'"):
        METHOD_REGISTRY.get("own")
    install("laconic-own", methods="own = MODULE:Own")
    assert METHOD_REGISTRY.get("own").name == "own" and METHOD_REGISTRY.names()[-1] == "own"
    assert parse_method("own:rank=3,power=4", "--method").power == 4  # type: ignore[attr-defined]
    (step,) = steps_from([{"compress": {"method": {"own": {"rank": 2}}}}], "recipe.steps")
    assert step.method.name == "own"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^The method 'own' has no parameter 'powr': did you mean 'power'\?"):
        method_or_step("own:powr=3", "--method")
    with pytest.raises(UserError, match=r"^--method.own.power must be a whole number; got 'x'\.$"):
        method_or_step("own:power=x", "--method")
    with pytest.raises(UserError, match="There is no method 'onw': did you mean 'own'"):
        method_or_step("onw", "--method")


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ("own = nowhere:Own", "cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("own = MODULE:Nothing", "cannot be imported (AttributeError: module '"),
        ("own = MODULE:own", "is no subclass of Method;"),
        ("own = MODULE:dataclass", "is no subclass of Method;"),
        ("own = MODULE:TruncationMethod", "is no subclass of Method that can be used;"),
        ("own = MODULE:Other", "names a class with the name 'other'"),
    ],
)
def test_what_is_wrong_with_one_is_a_sentence_when_it_is_asked_for(
    install: Install, points: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("laconic-own", methods=points)
    assert METHOD_REGISTRY.get("svd") is Svd
    with pytest.raises(UserError) as caught:
        method_or_step("own", "--method")
    said = str(caught.value)
    assert said.startswith("The entry point 'own = ") and "(laconic.methods) of laconic-own 1.2 " in said
    assert sentence in said and said.endswith(", or uninstall 'laconic-own'.")
    assert status(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["failed"] == [said] and {"svd", "gptq"} <= {line["name"] for line in listed["methods"]}
    assert status(["methods", "own"]) == 2
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("raises", ["raise RuntimeError('no driver')", "1 / 0", "def", "raise KeyError('x')"])
def test_a_module_that_fails_whatever_it_raises(install: Install, raises: str) -> None:
    install("laconic-own", module=raises, methods="own = MODULE:Own")
    with pytest.raises(UserError, match=r"of laconic-own 1\.2 cannot be imported \(\w+Error"):
        METHOD_REGISTRY.get("own")


@pytest.mark.parametrize(
    ("group", "name"), [("methods", "svd"), ("methods", "narrow"), ("steps", "narrow"), ("steps", "svd")]
)
def test_a_built_in_cannot_be_replaced(install: Install, group: str, name: str) -> None:
    install("laconic-own", **{group: f"{name} = MODULE:Own"})
    with pytest.raises(UserError, match=f"'{name} = .* of laconic-own 1.2 has the name of something that laconic-lm"):
        method_or_step(name, "--method")
    assert METHOD_REGISTRY.get("gptq") is METHOD_REGISTRY.all()["gptq"] and name in (
        METHOD_REGISTRY.all() | STEP_REGISTRY.all()
    )


@pytest.mark.parametrize("group", ["methods", "steps"])
def test_two_of_one_name_are_one_sentence_that_names_both(install: Install, group: str) -> None:
    install("laconic-own", methods="own = MODULE:Own")
    install("laconic-too", **{group: "own = MODULE:Own"})
    with pytest.raises(UserError, match=r"of laconic-own 1\.2 has the same name as the entry .* of laconic-too 1\.2"):
        method_or_step("own", "--method")


def test_it_is_shown_like_a_built_in_with_the_name_of_its_distribution(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("laconic-own", methods="own = MODULE:Own")
    assert status(["methods", "own", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["distribution"] == "laconic-own 1.2" and shown["what"] == "A method of the test's own."
    assert {"name": "power", "type": "a whole number", "default": "2", "meaning": "what it is raised to."} in shown[
        "parameters"
    ]
    assert status(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "failed" not in listed and listed["methods"][-1]["name"] == "own"
    assert [line["name"] for line in listed["methods"] if "distribution" in line] == ["own"]


def test_nothing_is_imported_to_know_the_names(install: Install) -> None:
    install("laconic-own", module="raise SystemExit", methods="own = MODULE:Own", tasks="mine = MODULE:Own")
    assert [plugin.name for plugin in plugins("laconic.methods", "laconic.tasks")] == ["own", "mine"]
    assert "own" in METHOD_REGISTRY.names() and isinstance(parse_method("svd", ""), Method)
