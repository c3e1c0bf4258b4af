"""Log the cells of a study as runs in MLflow. Results are never read from there: reports use the ledger.

Each record is logged once; the tags of a run contain the key, the state and the finish time of its record. An
unfinished run of a killed process is replaced. If the server is not reachable, the study continues, and its next run
logs the missing records.
"""

import json
import posixpath
import re
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec

from laconic.errors import UserError, install, must_be, reason_of
from laconic.files import expand_user
from laconic.report.study.groups import cell_name
from laconic.report.study.results import results_table
from laconic.study.cells import DONE
from laconic.study.ledger import Record
from laconic.study.shared_folder import Folder

STORE, ARTIFACTS = "mlflow.db", "mlflow"
"""Files of the local store in the folder of a study."""
RECORD = "record.json"
PREFIX = "laconic."
IDENTITY = ("key", "state", "finished")
"""The tags by which the MLflow run of a record is found."""
LIBRARIES, SQL_LIBRARIES = ("mlflow",), ("sqlalchemy", "alembic")
SQL = re.compile(r"(sqlite|postgresql|mysql|mssql)\b")
FORBIDDEN = re.compile(r"[^\w\-. :/]")
LONGEST = 250
"""The largest number of characters in a name in MLflow."""
SETTINGS = ("data", "samples", "max_length", "batch_size", "labels")
"""Fields of the recipe that are logged as parameters of a run, in addition to the axes."""


def check_logging(target: bool | str, location: str) -> None:
    """Check that the cells of a study can be logged, without opening a store.

    Args:
        target: the study's `mlflow`: False, True for a store in its folder, or a tracking URI.
        location: the folder or URL of the study.

    Raises:
        UserError: the target is not a tracking URI, or a library is not installed.

    Example:
        >>> check_logging("server", "study")
        Traceback (most recent call last):
        laconic.errors.UserError: study.mlflow must be true, or a tracking URI like http://localhost:5000; got 'server'.
    """
    if target is False:
        return
    if target is True and "://" in location:
        raise must_be("study.mlflow", "a tracking URI for a study at a URL", target)
    if isinstance(target, str) and "://" not in target and not target.startswith("databricks"):
        raise must_be("study.mlflow", "true, or a tracking URI like http://localhost:5000", target)
    needed = LIBRARIES + (SQL_LIBRARIES if target is True or SQL.match(str(target)) else ())
    if missing := [library for library in needed if find_spec(library) is None]:
        raise UserError(f"study.mlflow needs {' and '.join(missing)}, not installed here: {install('mlflow')}.")


class MlflowLogger:
    """Logs records of a study as runs of one MLflow experiment.

    The attribute `missed` is the number of records that could not be logged, and `reason` is the error.

    Args:
        location: the folder or URL of the study.
        uri: the tracking URI; None for a SQLite file in the folder of the study.
        title: the name of the experiment; None for the name of the folder.

    Raises:
        UserError: the store cannot be used, or its experiment was deleted.
    """

    def __init__(self, location: str, uri: str | None, title: str | None) -> None:
        self.missed = 0
        self.reason = ""
        self._folder = Folder(location)
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._errors: tuple[type[Exception], ...] = (import_module("mlflow.exceptions").MlflowException, OSError)
        folder = expand_user(location).absolute()
        # A server decides where artifacts go; for a database MLflow would put them into the working directory.
        beside = f"{location.rstrip('/')}/{ARTIFACTS}" if "://" in location else (folder / ARTIFACTS).as_uri()
        artifacts = beside if uri is None or SQL.match(uri) else None
        name = title or posixpath.basename(location.rstrip("/")) or folder.name
        try:
            with self._folder.lock():
                self._client = mlflow.MlflowClient(uri or f"sqlite:///{folder / STORE}")
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    experiment = self._client.get_experiment(
                        self._client.create_experiment(name, artifact_location=artifacts)
                    )
        except self._errors as error:
            raise UserError(f"study.mlflow: The store '{uri or STORE}' cannot be used: {reason_of(error)}.") from error
        if experiment.lifecycle_stage == "deleted":
            raise UserError(f"study.mlflow: The experiment '{name}' was deleted; restore it, or give another title.")
        self._experiment = experiment.experiment_id

    def add(self, record: Record) -> None:
        """Log a record unless it is logged already. After a first failure, records are only counted in `missed`."""
        if self.reason:
            self.missed += 1
            return
        try:
            with self._folder.lock():
                if not self._is_logged(record):
                    self._log(record)
        except self._errors as error:
            self.missed += 1
            self.reason = reason_of(error)

    def _is_logged(self, record: Record) -> bool:
        """Whether there is a finished run for the record. An unfinished run is deleted."""
        filters = (f"tags.`{PREFIX}{name}` = '{record[name]}'" for name in IDENTITY)
        for run in self._client.search_runs([self._experiment], " and ".join(filters)):
            if run.info.status != "RUNNING":
                return True
            self._client.delete_run(run.info.run_id)
        return False

    def _log(self, record: Record) -> None:
        end = int(datetime.fromisoformat(record["finished"]).timestamp() * 1e3)
        start = end - int(1e3 * (record.get("seconds") or {}).get("total", 0))
        run = self._client.create_run(self._experiment, start, _tags(record), cell_name(record["axes"])).info.run_id
        metrics = [self._entities.Metric(name, value, end, 0) for name, value in _metrics(record).items()]
        params = [self._entities.Param(name, value) for name, value in _params(record).items()]
        self._client.log_batch(run, metrics, params)
        self._client.log_text(run, json.dumps(record, indent=1), RECORD)
        self._client.set_terminated(run, "FINISHED" if record["state"] == DONE else "FAILED", end)


def _tags(record: Record) -> dict[str, str]:
    tags = {name: record.get(name) for name in ("key", "finished", "state", "family", "baseline")}
    tags |= {name: record["axes"].get(name) for name in ("model", "method", "recipe", "task")}
    tags["error"] = (record.get("error") or {}).get("sentence")
    return {f"{PREFIX}{name}": str(value) for name, value in tags.items() if value is not None}


def _params(record: Record) -> dict[str, str]:
    recipe = record.get("recipe") or {}
    params = {**{name: recipe.get(name) for name in SETTINGS}, **record["axes"]}
    return {_valid_name(name): str(value) for name, value in params.items() if value is not None}


def _metrics(record: Record) -> dict[str, float]:
    """The numbers in the row of the record in results.csv."""
    results = results_table([record])
    return {
        _valid_name(name): value
        for name, value in results.rows[0].items()
        if name not in results.axes.values() and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _valid_name(name: str) -> str:
    """The name with characters replaced that MLflow does not accept; some stores use names as paths."""
    return posixpath.normpath(FORBIDDEN.sub("_", name))[:LONGEST]
