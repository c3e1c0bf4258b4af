"""Studies in MLflow: every record is one run, whatever was killed; without the library one sentence says so."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.report.study.results import results_table
from laconic.study import Ledger, MlflowLogger, cells_of, check_logging, run_study, study_from
from laconic.study.executors import InProcess


def run(study: dict[str, Any], place: Path, logbook: MlflowLogger | None) -> Any:
    return run_study(cells_of(study_from(study, Path())), Ledger(str(place)), InProcess(place), logger=logbook)


@pytest.fixture
def little(little_study: dict[str, Any]) -> dict[str, Any]:
    """The original, and one method at two sizes."""
    little_study["axes"] |= {"method": ["svd"], "seed": [0]}
    return little_study


@pytest.fixture
def mlflow() -> Any:
    """The library; its use of others is not ours to answer for."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra mlflow is not installed")
    pytest.importorskip("alembic", reason="the extra mlflow is not installed")
    import mlflow

    return mlflow


def runs(mlflow: Any, place: Path, title: str | None = None) -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name(title or place.name).experiment_id]))


@pytest.mark.slow
def test_every_record_is_a_run(mlflow: Any, little: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "study"
    assert run(little, place, MlflowLogger(str(place), None, None)).measured == 3
    records = {record["key"]: record for record in Ledger(str(place)).all()[0]}
    found = runs(mlflow, place)
    assert sorted(one.data.tags["laconic.key"] for one in found) == sorted(records)
    for one in found:
        record = records[one.data.tags["laconic.key"]]
        (row,) = results_table([record]).rows
        assert one.info.status == "FINISHED"
        assert one.data.tags["laconic.method"] == record["axes"]["method"]
        assert one.data.metrics["glue/sst2 accuracy"] == row["glue/sst2 accuracy"]
        assert one.data.metrics["file_bytes"] == record["file_bytes"]
        assert one.data.params["model"] == "two" and "keep" not in one.data.metrics
        if not record["baseline"]:
            assert one.data.params["keep"] == str(record["axes"]["keep"]) and one.data.metrics["kl"] == row["kl"]
        (artifact,) = (place / "mlflow" / one.info.run_id / "artifacts").iterdir()
        assert json.loads(artifact.read_text()) == record


def test_nothing_is_logged_twice_and_nothing_is_left_out(mlflow: Any, little: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "study"
    run(little, place, None)
    assert run(little, place, MlflowLogger(str(place), None, "Later")).measured == 0
    assert len(runs(mlflow, place, "Later")) == 3, "what was measured before it was asked for"
    run(little, place, MlflowLogger(str(place), None, "Later"))
    run(little | {"axes": little["axes"] | {"keep": [0.5, 0.75, 0.9]}}, place, MlflowLogger(str(place), None, "Later"))
    assert len(runs(mlflow, place, "Later")) == 4


def test_a_run_that_was_killed_half_way_is_made_anew(
    mlflow: Any, little: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "study"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow.MlflowClient, "set_terminated", killed)
        run(little, place, MlflowLogger(str(place), None, None))
    assert [one.info.status for one in runs(mlflow, place)] == ["RUNNING"]
    run(little, place, MlflowLogger(str(place), None, None))
    found = runs(mlflow, place)
    assert [one.info.status for one in found] == ["FINISHED"] * 3
    assert len({one.data.tags["laconic.key"] for one in found}) == 3


def test_a_failure_is_a_failed_run_and_its_repetition_another(
    mlflow: Any, little: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laconic.methods import Svd

    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    place = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(Svd, "compress", broken)
        run(little, place, MlflowLogger(str(place), None, None))
    failed = [one for one in runs(mlflow, place) if one.info.status == "FAILED"]
    assert [one.data.tags["laconic.error"] for one in failed] == ["no such luck"] * 2
    every = cells_of(study_from(little, Path()))
    run_study(every, Ledger(str(place)), InProcess(place), retry=True, logger=MlflowLogger(str(place), None, None))
    states = [one.info.status for one in runs(mlflow, place)]
    assert states.count("FAILED") == 2 and states.count("FINISHED") == 3


def test_a_store_that_is_away_ends_no_study_and_is_caught_up_with(
    mlflow: Any, little: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def away(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise mlflow.exceptions.MlflowException("The server is away.")

    place = tmp_path / "study"
    logbook = MlflowLogger(str(place), None, None)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_run", away)
        assert run(little, place, logbook).measured == 3
    assert (logbook.missed, logbook.reason, len(tried)) == (3, "The server is away", 1)
    run(little, place, MlflowLogger(str(place), None, None))
    assert len(runs(mlflow, place)) == 3


def test_names_that_mlflow_refuses_are_changed(mlflow: Any, little: dict[str, Any], tmp_path: Path) -> None:
    run(little, tmp_path / "study", None)
    logbook = MlflowLogger(str(tmp_path), None, "Odd")
    for number, record in enumerate(Ledger(str(tmp_path / "study")).all()[0]):
        figure = {"value": 0.5, "low": 0.4, "high": 0.6}
        record["evaluation"]["results"] = {f"lama/a:{number}/../b (c)": {"p@1,none": figure}}
        logbook.add(record)
    assert not logbook.missed
    assert any("lama/b _c_ p_1_none" in one.data.metrics for one in runs(mlflow, tmp_path, "Odd"))


def test_the_command_line_logs_where_the_study_says(
    mlflow: Any,
    little: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"title": "Little", **little}, sort_keys=False))
    command = ["study", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "study"), "--json"]
    store = tmp_path / "elsewhere" / "mlflow.db"
    store.parent.mkdir()
    for where in ("true", f"sqlite:///{store}"):
        assert status([*command, f"mlflow={where}"]) == 0
    assert len(runs(mlflow, tmp_path / "study", "Little")) == len(runs(mlflow, store.parent, "Little")) == 3
    json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {path.name for path in tmp_path.iterdir()} >= {"study", "elsewhere", "study.yaml"}
    assert not (tmp_path / "mlruns").exists(), "artifacts lie in the study's folder"
    assert len(list((tmp_path / "study" / "mlflow").iterdir())) == 6


@pytest.mark.parametrize(
    ("where", "place", "sentence"),
    [
        ("runs", "study", r"study\.mlflow must be true, or a tracking URI like http://.*; got 'runs'"),
        (True, "s3://bucket/study", r"study\.mlflow must be a tracking URI for a study at a URL"),
    ],
)
def test_where_nothing_can_be_logged_is_one_sentence(where: bool | str, place: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        check_logging(where, place)


def test_without_the_library_the_extra_is_named_before_anything_is_done(
    little: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("laconic.study.mlflow_logger"), "find_spec", lambda name: None)
    check_logging(False, "study")
    little["axes"]["model"] = [str(tmp_path / "no such model")]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**little, "mlflow": True}, sort_keys=False))
    assert status(["study", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "study")]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.endswith(
        "needs mlflow and sqlalchemy and alembic, not installed here: pip install 'laconic-lm[mlflow]'."
    )
    assert not (tmp_path / "study").exists()
