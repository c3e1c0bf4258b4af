"""Recipes, plans and studies that earlier versions wrote are read to the values that they had."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from laconic.allocate import plan_to_config, read_plan
from laconic.cli.main import status
from laconic.recipe import read_recipe
from laconic.recipe.schema import spell_recipe
from laconic.report.study import query, write_report
from laconic.study import Ledger, cells_of, of_the_study, read_study, title_of
from tests.old.reading import VERSIONS, within

RECIPES = [path for version in VERSIONS for path in sorted((version / "recipes").glob("*.yaml"))]
BESIDE = [path for version in VERSIONS for path in sorted(version.glob("models/*/recipe.yaml"))]
PLANS = [path for version in VERSIONS for path in sorted(version.glob("models/*/plan*.yaml"))]

every_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_said(path: Path) -> None:
    assert within(read(path.with_suffix(".json")), spell_recipe(read_recipe(path)))


@every_version
def test_a_plan_says_what_it_said(version: Path) -> None:
    assert within(read(version / "plan.json"), plan_to_config(read_plan(version / "plan.yaml")))


def test_recipes_and_plans_beside_models_are_read() -> None:
    assert len(BESIDE) >= len(PLANS) > 0
    assert all(read_recipe(path).steps for path in BESIDE)
    assert all(read_plan(path) for path in PLANS)


@every_version
def test_the_records_of_a_study_are_all_there(version: Path) -> None:
    place = str(version / "study")
    records, strange = Ledger(place).all()
    assert not strange
    assert title_of(place) == "Old"
    files = sorted((version / "study" / "cells").glob("*.json"))
    assert records == [read(file) for file in files]
    assert len(of_the_study(place, records)) == len(records) > 1


@every_version
def test_the_study_has_the_cells_that_it_had(version: Path) -> None:
    records, _ = Ledger(str(version / "study")).all()
    cells = cells_of(read_study(version / "study" / "study.yaml"))
    assert {json.dumps(cell.axes) for cell in cells} == {json.dumps(record["axes"]) for record in records}
    by_axes = {json.dumps(cell.axes): cell for cell in cells}
    for record in records:
        cell = by_axes[json.dumps(record["axes"])]
        # Where the model lies depends on who reads it.
        said = {key: value for key, value in record["recipe"].items() if key != "model"}
        assert within(said, spell_recipe(cell.recipe))
        assert (cell.family, cell.baseline) == (record["family"], record["baseline"])


@every_version
def test_the_report_has_the_figures_that_it_had(version: Path, tmp_path: Path) -> None:
    old = version / "study"
    records, _ = Ledger(str(old)).all()
    write_report(records, tmp_path / "report", title_of(str(old)))

    def figures(folder: Path) -> list[dict[str, str]]:
        return sorted(csv.DictReader((folder / "results.csv").read_text().splitlines()), key=lambda line: line["key"])

    assert within(figures(old), figures(tmp_path / "report"))


@every_version
def test_the_results_are_queried(version: Path) -> None:
    pytest.importorskip("duckdb")
    table = query(version / "study", "select count(*) as n from results")
    assert table.rows == ((len(list((version / "study" / "cells").glob("*.json"))),),)


def keys_within(old: object, new: object) -> bool:
    """Whether `new` has the sections that `old` has, as far as both name them by words."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and keys_within(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and old and isinstance(new, list) and new:
        return keys_within(old[0], new[0])
    return (old is None) or type(old) is type(new) or (isinstance(old, (int, float)) and isinstance(new, (int, float)))


@every_version
def test_what_is_printed_of_a_model_has_the_sections_that_it_had(
    version: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status(["inspect", str(version / "original"), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    old = {key: value for key, value in read(version / "printed" / "inspect.json").items() if key in printed}
    assert old and keys_within(old, printed)
