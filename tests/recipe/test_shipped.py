"""Recipes and studies that come with laconic are called by their names, from any folder."""

import json
from pathlib import Path

import pytest

import laconic
from laconic.builtin_recipes import FOLDER, Kind, builtin_files, descriptions, find_file
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.recipe import read_recipe
from laconic.study import read_study

FILES = sorted(FOLDER.rglob("*.yaml"))
every_kind = pytest.mark.parametrize("kind", ["recipe", "study"])


def test_every_file_has_a_name_of_its_own() -> None:
    assert Path(laconic.__file__).parent / "recipes" == FOLDER
    assert sorted([*builtin_files("recipe").values(), *builtin_files("study").values()]) == FILES
    assert not builtin_files("recipe").keys() & builtin_files("study").keys()
    assert len(FILES) > 50


@every_kind
def test_each_says_what_it_does(kind: Kind) -> None:
    what = descriptions(kind)
    assert list(what) == list(builtin_files(kind))
    assert all(len(said) > 10 for said in what.values())
    assert descriptions("study")["quick"] == "Three methods at two sizes on few rows: minutes on a laptop"


def test_a_name_is_of_what_is_shipped_whatever_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sst2-svd", "sst2-kfac-svd", "sst2-kfac-svd.yaml"):
        Path(name).write_text("model: own\nsteps: [{compress: {method: svd, keep: 0.5}}]\n")
    assert find_file("sst2-kfac-svd", "recipe") == FOLDER / "sst2-kfac-svd.yaml"
    for given in ("sst2-kfac-svd.yaml", "./sst2-kfac-svd", str(tmp_path / "sst2-svd")):
        assert read_recipe(find_file(given, "recipe")).model == "own", given
    assert find_file("drone-small", "recipe").parent.name == "seeds"
    assert read_study(find_file("quick", "study")).title == "Three methods at two sizes"


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        (
            "sst2-kfac",
            "recipe",
            "There is no recipe 'sst2-kfac' among those that come with laconic: did you mean 'sst2-kfac-svd'? "
            "`laconic run --list` names them, and a file is given with its suffix or a path.",
        ),
        ("SST2-Narrow", "recipe", "did you mean 'sst2-narrow'?"),
        ("xyzzy", "recipe", "among those that come with laconic: `laconic run --list` names them"),
        ("quik", "study", "did you mean 'quick'? `laconic study --list` names them"),
        ("quick", "recipe", "it is a study, for `laconic study`."),
        ("sst2-narrow", "study", "it is a recipe, for `laconic run`."),
        ("mine", "recipe", "the file of this name here is './mine'."),
        (
            "recipes/sst2-narrow.yaml",
            "recipe",
            "no such file; the one that comes with laconic is called 'sst2-narrow'.",
        ),
    ],
)
def test_other_names_are_told_what_to_do(
    given: str, kind: Kind, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("model: own\n")
    with pytest.raises(UserError) as raised:
        find_file(given, kind)
    assert told in str(raised.value)


@pytest.mark.parametrize("given", ["", ".", "..", "own.yaml", "own/", "a/b", "recipe.txt"])
def test_what_is_no_name_is_a_path(given: str) -> None:
    assert find_file(given, "recipe") == Path(given)


def test_a_study_names_recipes_too(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("axes: {model: [m], recipe: [rank-svd, {narrow: sst2-narrow}], seed: [0]}\ndata: glue/sst2\n")
    assert [value.label for value in read_study(file).axes["recipe"]] == ["rank-svd", "narrow"]
    file.write_text("axes: {model: [m], recipe: [rank-sv]}\n")
    with pytest.raises(UserError, match=r"study\.axes\.recipe\[0\]: There is no recipe 'rank-sv'.*'rank-svd'"):
        read_study(file)


@pytest.mark.parametrize(("verb", "plural", "one"), [("run", "recipes", "rank-svd"), ("study", "studies", "quick")])
def test_they_are_listed(verb: str, plural: str, one: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert status([verb, "--list"]) == 0
    assert one in capfd.readouterr().out
    for words in (["--list", "--json"], ["--json", "--list"]):
        assert status([verb, *words]) == 0
        listed = json.loads(capfd.readouterr().out)[plural]
        assert one in [line["name"] for line in listed] and all(line["what"] for line in listed)


@pytest.mark.parametrize("verb", ["run", "study"])
def test_an_unknown_name_is_a_mistake_of_the_command_line(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status([verb, "nosuch", "-o", str(tmp_path / "out")]) == 2
    assert "among those that come with laconic" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
