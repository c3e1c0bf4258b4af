"""The memory of the process and of the machine, read from files like those of Linux."""

import time
from pathlib import Path

import pytest

from laconic import memory
from laconic.memory import free_memory, resident_memory, sampled_peak

GIBIBYTE = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `proc` and `cgroup`, and 8 GiB of free memory."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 16777216 kB\nMemAvailable: {8 * 2**20} kB\n")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_what_the_machine_has_free(system: Path) -> None:
    assert free_memory() == 8 * GIBIBYTE


def test_a_limit_of_the_container_counts_without_cached_files(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("0::/jobs/mine\n")
    write(system / "cgroup" / "jobs" / "mine", memory__max="max", memory__current=GIBIBYTE)
    limit = {"memory__max": 4 * GIBIBYTE, "memory__current": 2 * GIBIBYTE}
    write(system / "cgroup" / "jobs", **limit, memory__stat=f"anon 5\ninactive_file {GIBIBYTE}")
    assert free_memory() == 3 * GIBIBYTE


def test_a_limit_of_the_first_version_of_control_groups(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("3:cpuset:/\n4:memory:/on/the/host\n0::/\n")
    group = system / "cgroup" / "memory"
    write(group, memory__limit_in_bytes=2 * GIBIBYTE, memory__usage_in_bytes=GIBIBYTE)
    assert free_memory() == GIBIBYTE
    write(group, memory__limit_in_bytes=2**63 - 4096)
    assert free_memory() == 8 * GIBIBYTE


def test_empty_lines_are_skipped(system: Path) -> None:
    (system / "proc" / "meminfo").write_text(f"\nMemAvailable: {8 * 2**20} kB\n\n")
    (system / "proc" / "self" / "cgroup").write_text("\n0::/\n\n")
    limit = {"memory__max": 4 * GIBIBYTE, "memory__current": 2 * GIBIBYTE}
    write(system / "cgroup", **limit, memory__stat=f"\ninactive_file {GIBIBYTE}\n")
    assert free_memory() == 3 * GIBIBYTE


def test_other_systems_do_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "nothing")
    assert free_memory() is None and resident_memory() is None
    with sampled_peak() as peak:
        pass
    assert peak.bytes is None


def test_a_new_highest_memory_is_exact(system: Path) -> None:
    (system / "proc" / "self" / "status").write_text("Name: python\nVmHWM: 1024 kB\n")
    with sampled_peak() as peak:
        (system / "proc" / "self" / "status").write_text("Name: python\nVmHWM: 4096 kB\n")
    assert peak.bytes == 4 * 2**20


def test_the_peak_outlives_what_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the samples of the thread can tell, not the count of the system.
    monkeypatch.setattr(memory, "highest_memory", lambda: None)
    before = resident_memory()
    if before is None:
        pytest.skip("the system does not say how much memory a process has")
    with sampled_peak() as peak:
        filled, end = bytearray(b"x" * 2**26), time.monotonic() + 10
        while (peak.bytes or 0) < before + 2**26 and time.monotonic() < end:
            time.sleep(0.01)
        del filled
    assert peak.bytes is not None and peak.bytes >= before + 2**26
