"""Commands that need no model do not import the slow libraries, and print the same as with them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from laconic import catalogue
from laconic.catalogue import check_name
from laconic.cli.main import app
from laconic.errors import UserError
from laconic.recipe import catalogue as written
from laconic.recipe.parse import method_or_step

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "scipy", "matplotlib", "transformers"}
VERBS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
MISTAKES = [
    "comprss",
    "compress MODEL --method svd --keep 0.5",
    "compress MODEL --method svd --rank 3 -o OUT",
    "compress MODEL --method gtpq -o OUT",
    "compress MODEL --method svd:rnk=3 -o OUT",
    "compress MODEL --method svd --keep 2 -o OUT",
    "compress MODEL --method svd --keep 0.5 --samples many -o OUT",
    "compress MODEL --method svd --keep 0.5 --targets , -o OUT",
    "compress MODEL --method svd --keep 0.5 --device abacus -o OUT",
    "evaluate MODEL --limit 0",
    "evaluate MODEL --batch none",
    "evaluate MODEL --tasks ,",
    "methods gtpq",
    "methods svd:rank=3",
    "run nowhere.yaml -o OUT",
    "run sst2-kfac -o OUT",
    "study nowhere.yaml -o OUT",
    "study nowhere.yaml --address here -o OUT",
]


def imported(*arguments: str) -> tuple[int, set[str], str]:
    """The exit status of the program, the packages that it has imported, and what it said of a mistake."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "importtime", "-m", "laconic", *arguments]
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    lines = ended.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    return ended.returncode, {module.partition(".")[0] for module in modules}, said


@pytest.mark.parametrize("line", ["--help", *(f"{verb} --help" for verb in VERBS), "--version", "methods",
                                  "methods gptq", "methods compress", "run --list", "study --list"])  # fmt: skip
def test_an_answer_needs_none_of_the_large_libraries(line: str) -> None:
    status, packages, said = imported(*line.split())
    assert (status, said) == (0, "")
    assert "laconic" in packages and not packages & HEAVY


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_needs_none_of_the_large_libraries(line: str) -> None:
    status, packages, said = imported(*line.split())
    assert status == 2 and len(said.splitlines()) == 1
    assert "laconic" in packages and not packages & HEAVY


@pytest.mark.slow
def test_what_is_seen_here_would_be_seen() -> None:
    assert {"torch", "transformers"} <= imported("inspect", "./nowhere")[1]


def test_the_catalogue_is_what_the_classes_say() -> None:
    assert catalogue.PATH.read_text(encoding="utf-8") == written.to_json(), "run python -m laconic.recipe.catalogue"
    assert list(catalogue.catalogue().values()) == [written.entry_of(kind) for kind in written.BUILTINS.values()]


@pytest.mark.parametrize("method", ["gtpq", "Gptq", "", "svd:rnk=3", "plus:bits=4", "svd:rank", "svd:rank=3,rank=4"])
def test_a_name_is_refused_in_the_words_of_the_classes(method: str) -> None:
    with pytest.raises(UserError) as early:
        check_name(method, "--method")
    with pytest.raises(UserError) as late:
        method_or_step(method, "--method")
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "example", [entry.example for entry in catalogue.catalogue().values() if entry.name != "compress"]
)
def test_what_there_is_is_not_refused(example: str) -> None:
    check_name(shlex.split(example)[4], "--method")
