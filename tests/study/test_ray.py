"""The same study on a Ray cluster of this machine; a worker that is killed in a cell is started again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from laconic.errors import UserError
from laconic.study import Ledger, cells_of, run_study, study_from
from laconic.study.ray_executor import LOCAL, RayExecutor, connect
from tests.study.test_run import done, figures

ray = pytest.importorskip("ray")

MEMORY = 8 * 2**30
"""The bytes that the cluster believes to have for workers."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One of this machine, which ends with the tests of this file."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, _memory=MEMORY, log_to_driver=False, runtime_env=environment, **LOCAL)
    yield
    ray.shutdown()


@pytest.fixture
def little_study(little_study: dict[str, Any]) -> dict[str, Any]:
    """Five cells: most of the time is that of starting workers."""
    return little_study | {"exclude": [{"seed": 1}]}


@dataclass(frozen=True)
class Murderous(RayExecutor):
    """Kills its first worker while that is at its second cell."""

    killed: list[Any] = field(default_factory=list)

    def _start_actor(self, ray: Any, memory: int = 0) -> Any:
        actor = super()._start_actor(ray, memory)
        if not self.killed:
            self.killed.append(actor)
            Thread(target=self._kill, args=(ray, actor), daemon=True).start()
        return actor

    def _kill(self, ray: Any, actor: Any) -> None:
        ray.get(actor.__ray_ready__.remote())
        ray.kill(actor, no_restart=False)


@pytest.mark.slow
def test_ray_finds_what_this_process_finds_though_a_worker_is_killed(
    little_study: dict[str, Any], tmp_path: Path
) -> None:
    done(little_study, tmp_path / "here")
    place = tmp_path / "there"
    executor = Murderous(place, workers=1, threads=1)
    summary = run_study(cells_of(study_from(little_study, Path())), Ledger(str(place)), executor)
    assert executor.killed and summary.measured == 5 and not summary.failed
    assert figures(place) == figures(tmp_path / "here")


@dataclass(frozen=True)
class Asked(RayExecutor):
    """Notes the memory that each worker asks for, and what the cluster has left once it has started."""

    asked: list[tuple[int, float]] = field(default_factory=list)

    def _start_actor(self, ray: Any, memory: int = 0) -> Any:
        actor = super()._start_actor(ray, memory)
        ray.get(actor.__ray_ready__.remote())
        self.asked.append((memory, ray.available_resources()["memory"]))
        return actor


@pytest.mark.slow
def test_a_worker_of_a_large_model_has_its_memory(
    streamed_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(streamed_study, tmp_path / "here")
    monkeypatch.setattr(import_module("laconic.study.memory"), "LARGE", 0)
    executor = Asked(tmp_path / "there", workers=1, threads=1)
    summary = run_study(cells_of(study_from(streamed_study, Path())), Ledger(str(tmp_path / "there")), executor)
    assert summary.measured == 2 and not summary.failed
    assert figures(tmp_path / "there") == figures(tmp_path / "here")
    assert executor.asked and all(memory > 0 and left == MEMORY - memory for memory, left in executor.asked)


@pytest.mark.slow
def test_a_cell_that_no_machine_has_room_for_fails_at_once(
    streamed_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("laconic.study.memory").MemoryNeeds, "of", lambda *_: 2 * MEMORY)
    executor = RayExecutor(tmp_path, workers=1, threads=1)
    summary = run_study(cells_of(study_from(streamed_study, Path())), Ledger(str(tmp_path)), executor)
    sentences = [record["error"]["sentence"] for record in summary.failed]
    assert len(sentences) == 2 and all("needs about 17.2 GB of memory" in sentence for sentence in sentences)


def test_no_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("could not connect")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="There is no Ray cluster at 'far:1': could not connect"):
        connect("far:1")
