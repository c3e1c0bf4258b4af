"""The same study on a Ray cluster of this machine; a worker that is killed in a cell is started again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from laconic.errors import UserError
from laconic.study import Ledger, cells_of, run_study, study_from
from laconic.study.executors import LOCAL, RayExecutor, connect
from tests.study.test_run import done, figures

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One of this machine, which ends with the tests of this file."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, log_to_driver=False, runtime_env=environment, **LOCAL)
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

    def _start_actor(self, ray: Any) -> Any:
        actor = super()._start_actor(ray)
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


def test_no_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("could not connect")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="There is no Ray cluster at 'far:1': could not connect"):
        connect("far:1")
