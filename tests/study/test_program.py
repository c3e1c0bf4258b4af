"""Studies on the command line: what is shipped can be done, and what is only looked at is left as it was."""

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from laconic.cli.main import status
from laconic.progress import silent
from laconic.study import Ledger, cells_of, check_cells, make_executor, read_study, study_from
from laconic.study.cells import failure, record_header
from laconic.study.ray_executor import RayExecutor

STUDIES = Path(__file__).parents[2] / "laconic" / "recipes" / "studies"


@pytest.mark.parametrize("name", ["000-drone-local", "001-ranks-local", "002-l1-local", "003-width-local", "quick"])
@pytest.mark.slow
def test_every_cell_of_a_local_study_can_be_done(
    name: str, shared_models: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    (tmp_path / "here").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "models").symlink_to(shared_models)
    monkeypatch.chdir(tmp_path / "here")
    check_cells(cells_of(read_study(STUDIES / f"{name}.yaml")))


@pytest.fixture
def tried(little_study: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A study that was run on three rows, and then on all."""
    little_study["axes"] |= {"method": ["svd"], "seed": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"title": "Little", **little_study}, sort_keys=False))
    for more in (["limit=3"], []):
        command = ["study", str(tmp_path / "study.yaml"), *more, "-o", str(tmp_path / "study"), "--json"]
        assert status(command) == 0
    assert "Records in" in capfd.readouterr().err
    return tmp_path / "study"


def test_records_of_an_earlier_form_of_the_study_are_told_of_and_not_reported(
    tried: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(list((tried / "cells").glob("*.json"))) == 6
    keys = [line["key"] for line in csv.DictReader((tried / "results.csv").read_text().splitlines())]
    assert len(keys) == 3
    assert status(["report", str(tried), "-o", str(tmp_path / "again"), "--json"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["records"] == 3 and "that are not reported: 3" in told.err
    assert (tmp_path / "again" / "results.csv").read_text() == (tried / "results.csv").read_text()
    assert status(["report", str(tried), "--query", "select count(*) as n from results", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"rows": [{"n": 3}]}
    (tried / "about.json").write_text("{ half")
    assert status(["report", str(tried), "-o", str(tmp_path / "all"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["records"] == 6, "nobody knows which are its own"


def test_what_failed_is_to_do_where_it_is_to_be_done_again(
    little_study: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(little_study, sort_keys=False))
    ledger, cells = Ledger(str(tmp_path / "study")), cells_of(study_from(little_study, tmp_path))
    for cell in cells[:2]:
        ledger.write({**record_header(cell, 1), **failure("RuntimeError", "No."), "seconds": {"total": 1.0}})
    command = ["study", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "study"), "--dry-run", "--json"]
    for more, number in (([], len(cells) - 2), (["--retry-failed"], len(cells))):
        assert status([*command, *more]) == 0
        listed = json.loads(capfd.readouterr().out)["cells"]
        assert sum(cell["state"] == "to do" for cell in listed) == number
        assert sum(cell["seconds"] is not None for cell in listed) == number


def test_a_study_with_failed_cells_is_reported_and_exits_with_one(
    little_study: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    little_study["axes"] |= {"method": ["svd"], "keep": [0.5], "seed": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(little_study, sort_keys=False))
    ledger, cells = Ledger(str(tmp_path / "study")), cells_of(study_from(little_study, tmp_path))
    ledger.write({**record_header(cells[-1], 1), **failure("RuntimeError", "No."), "seconds": {"total": 1.0}})
    command = ["study", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "study"), "--json"]
    assert status(command) == 1
    told = json.loads(capfd.readouterr().out)
    assert [one["sentence"] for one in told["failed"]] == ["No."] and Path(told["report"]).is_file()
    assert status([*command, "--retry-failed"]) == 0


def test_the_home_folder_is_one_place_and_no_folder_is_none(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    little_study |= {"save": True, "exclude": [{"keep": 0.5}, {"seed": 1}, {"method": "svd"}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(little_study, sort_keys=False))
    assert status(["study", "study.yaml", "-o", "~/seen"]) == 0
    assert {"cells", "models", "report.html"} <= {path.name for path in (tmp_path / "seen").iterdir()}
    assert not (tmp_path / "~").exists()
    capfd.readouterr()
    assert status(["study", "study.yaml", "-o", ""]) == 2
    assert "--output must be a folder or a URL; got ''." in capfd.readouterr().err


def test_workers_on_ray_ask_for_the_gpu_that_they_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("laconic.study.executors"), "connect", lambda address: None)
    executors = [make_executor("ray", None, 1, None, device, silent) for device in ("cuda", "cpu")]
    assert [one.gpus for one in executors if isinstance(one, RayExecutor)] == [1.0, 0.0]


def test_a_report_of_no_study_makes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status(["report", str(tmp_path)]) == 2
    assert "There is no study in" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
