"""The plug-in in examples/plugin: installed as pip does it, and used by the command line, a recipe and a study."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from laconic.cli.main import status
from laconic.testing import random_batch, randomize
from tests.tokens import letters

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
PAGE = (ROOT / "docs" / "extend.md").read_text()
PACKAGE = "laconic_example"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the plug-in is installed in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    words = ["install", "--no-deps", "--no-build-isolation", "--quiet", "--target", "site", "./source"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder / "site"


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, on the path of this test; what it keeps is of this test alone."""
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(site)
    yield site
    forget()


def forget() -> None:
    """Have the method's module imported anew. The architecture stays: transformers knows its classes."""
    sys.modules.pop(f"{PACKAGE}.method", None)
    importlib.invalidate_caches()


@pytest.fixture
def model(installed: Path, tmp_path: Path) -> Path:
    """A folder with a tiny model of the plug-in's architecture."""
    architecture = importlib.import_module(f"{PACKAGE}.architecture")
    config = architecture.Relu2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    randomize(architecture.Relu2ForCausalLM(config)).save_pretrained(tmp_path / "model")
    letters("start").save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("it was the best of times\nit was the worst of times\n" * 8)
    (tmp_path / "others.txt").write_text("it was the age of wisdom\nit was the age of foolishness\n")
    return tmp_path / "model"


def run(*words: object) -> None:
    assert status(list(map(str, words))) == 0, words


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_it_is_used_from_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, others, small = tmp_path / "texts.txt", tmp_path / "others.txt", tmp_path / "small"
    run("methods", "coala", "--json")
    assert json.loads(capsys.readouterr().out)["distribution"] == "laconic-example 0.1.0"
    run("compress", model, "--method", "coala:mu=0.05,multiple=1", "--keep", "0.5", "--data", texts, "-o", small)
    assert "coala" in (small / "plan.yaml").read_text()
    capsys.readouterr()
    run("evaluate", small, "--tasks", f"next-token:{others}", "--against", model, "--json")
    found = json.loads(capsys.readouterr().out)["results"][f"next-token:{others}"]
    assert 0 <= found["accuracy"]["value"] <= 1
    again = AutoModelForCausalLM.from_pretrained(small)
    assert type(again).__name__ == "Relu2ForCausalLM"
    assert again.num_parameters() < AutoModelForCausalLM.from_pretrained(model).num_parameters()
    assert torch.isfinite(again(**random_batch(again)).logits).all()


def test_it_is_used_in_a_recipe_and_a_study(model: Path, tmp_path: Path) -> None:
    texts, tasks = str(tmp_path / "texts.txt"), [f"next-token:{tmp_path / 'others.txt'}"]
    steps = [{"compress": {"method": {"coala": {"mu": 0.05, "multiple": 1}}, "keep": 0.5}}]
    recipe = {"model": str(model), "data": texts, "steps": steps, "evaluate": {"tasks": tasks}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("run", tmp_path / "recipe.yaml", "-o", tmp_path / "one")
    run("run", tmp_path / "recipe.yaml", "--plan", tmp_path / "one" / "plan.yaml", "-o", tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    axes = {"model": [str(model)], "method": ["coala:multiple=1", "svd:multiple=1"], "mu": [0.01, 1.0], "keep": [0.5]}
    study = {"axes": axes, "data": texts, "tasks": tasks}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run("study", tmp_path / "study.yaml", "-o", tmp_path / "study")
    assert "coala" in (tmp_path / "study" / "report.html").read_text()


def test_its_step_is_used_in_a_recipe(model: Path, tmp_path: Path) -> None:
    recipe = {"model": str(model), "steps": [{"clip-weights": {"deviations": 1.5}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run("run", tmp_path / "recipe.yaml", "-o", tmp_path / "clipped")
    name = "model.layers.1.mlp.up_proj.weight"
    before, after = weights(model)[name], weights(tmp_path / "clipped")[name]
    limit = 1.5 * before.std()
    assert torch.allclose(after, before.clamp(-limit, limit)) and not torch.equal(after, before)


def test_an_edit_of_the_method_changes_the_result(installed: Path, model: Path, tmp_path: Path) -> None:
    source = installed / PACKAGE / "method.py"
    text = source.read_text()
    words = ("compress", model, "--method", "coala:multiple=1", "--keep", "0.5", "--data", tmp_path / "texts.txt")
    try:
        run(*words, "-o", tmp_path / "first")
        run(*words, "-o", tmp_path / "again")
        source.write_text(text.replace("U * singular, Vh", "3 * U * singular, Vh"))
        forget()
        run(*words, "-o", tmp_path / "edited")
    finally:
        source.write_text(text)
    first, again, edited = (weights(tmp_path / name) for name in ("first", "again", "edited"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], edited[name]) for name in first)


def test_an_edit_of_the_method_or_the_task_has_cells_of_a_study_measured_again(
    installed: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"model": [str(model)], "method": ["coala:multiple=1", "svd:multiple=1"], "keep": [0.5]}
    study = {"axes": axes, "data": str(tmp_path / "texts.txt"), "tasks": [f"perplexity:{tmp_path / 'others.txt'}"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    source = installed / PACKAGE / "method.py"
    text = source.read_text()

    def counts() -> tuple[int, int]:
        capsys.readouterr()
        run("study", tmp_path / "study.yaml", "-o", tmp_path / "study", "--json")
        result = json.loads(capsys.readouterr().out)
        return result["measured"], result["found"]

    try:
        assert counts() == (3, 0)
        assert counts() == (0, 3)
        source.write_text(text.replace("U * singular, Vh", "3 * U * singular, Vh"))
        forget()
        assert counts() == (1, 2), "the cell of coala"
    finally:
        source.write_text(text)
    # Every cell has a task of the plug-in now.
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "tasks": [f"next-token:{tmp_path / 'others.txt'}"]}))
    source = installed / PACKAGE / "task.py"
    text = source.read_text()
    try:
        assert counts() == (3, 0)
        source.write_text(f"{text}\nEDITED = True\n")
        sys.modules.pop(f"{PACKAGE}.task", None)
        forget()
        assert counts() == (3, 0)
    finally:
        source.write_text(text)


def test_its_own_tests_pass(installed: Path) -> None:
    spec = importlib.util.spec_from_file_location("test_of_the_plugin", PLUGIN / "tests" / "test_plugin.py")
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    assert len([test() for test in functions_of(tests)]) == 5


def functions_of(module: ModuleType) -> Iterator:
    yield from (value for name, value in vars(module).items() if name.startswith("test_"))


def test_the_page_shows_the_files_as_they_are() -> None:
    shown = re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert {name for name, _ in shown} == {
        "pyproject.toml", f"{PACKAGE}/method.py", f"{PACKAGE}/step.py", f"{PACKAGE}/architecture.py",
        f"{PACKAGE}/task.py", "tests/test_plugin.py",
    }  # fmt: skip
    for name, text in shown:
        assert text == (PLUGIN / name).read_text(), f"docs/extend.md shows another {name}"


def test_the_commands_of_the_page_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        line.split() for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()
    ]
    assert sum(words[0] == "laconic" for words in commands) >= 3
    for words in commands:
        if words[0] == "laconic":
            source = "others.txt" if words[1] == "evaluate" else "texts.txt"
            run(*(word.replace("MODEL", str(model)).replace("builtin:pydoc", source) for word in words[1:]))
