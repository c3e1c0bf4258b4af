"""The disk cache of measurements."""

import os
from pathlib import Path

import pytest

from laconic import system
from laconic.cache import DiskCache, cache_folder
from laconic.system import short_numbers


def test_the_nearest_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LACONIC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "laconic"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "laconic"
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512_vnni\n\nflags\t\t: fpu", ("avx512_vnni",)),
        ("processor\t: 0\nFeatures\t: fp asimddp i8mm", ("asimddp", "i8mm")),
        ("flags\t\t: fpu avx2 avx512_vnni2", ()),
    ],
)
def test_instructions_are_those_that_the_processor_tells(
    told: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(system, "CPUINFO", tmp_path / "cpuinfo")
    assert short_numbers() == found


def test_without_a_list_of_processors_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "CPUINFO", tmp_path / "none")
    assert short_numbers() == ()


def test_an_entry_is_read_as_written_and_the_least_recently_used_make_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE_GB", "25e-9")
    cache = DiskCache("texts", ".txt")
    for number, key in enumerate("abc"):
        cache.write(key, lambda path: path.write_text("0123456789"))
        os.utime(cache.path(key), (number, number))
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {"b.txt", "c.txt"}
    assert cache.read("b", Path.read_text) == "0123456789" and cache.read("a", Path.read_text) is None
    cache.write("d", lambda path: path.write_text("0123456789"))
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {"b.txt", "d.txt"}
    cache.write("e", lambda path: path.write_text("0" * 30))
    cache.write("f", lambda path: path.write_text(""), nbytes=30)
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {"b.txt", "d.txt"}


def test_what_a_killed_run_left_is_removed_after_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    cache = DiskCache("texts", ".txt")
    cache.write("a", lambda path: path.write_text("a"))
    for name in (".b.txt.0123", "b.0123"):
        (tmp_path / "texts" / name).touch()
        os.utime(tmp_path / "texts" / name, (0, 0))
    (tmp_path / "texts" / ".c.txt.0123").touch()
    cache.write("a", lambda path: path.write_text("b"))
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {"a.txt", ".c.txt.0123"}


def test_a_size_of_nothing_reads_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    cache = DiskCache("texts", ".txt")
    cache.write("a", lambda path: path.write_text("a"))
    monkeypatch.setenv("LACONIC_CACHE_GB", "0")
    cache.write("b", lambda path: path.write_text("b"))
    assert cache.read("a", Path.read_text) is None and not cache.path("b").exists()
