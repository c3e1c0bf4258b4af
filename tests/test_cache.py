"""Where measurements are kept."""

from pathlib import Path

import pytest

from laconic import cache
from laconic.cache import cache_folder, short_numbers


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
    monkeypatch.setattr(cache, "CPUINFO", tmp_path / "cpuinfo")
    assert short_numbers() == found


def test_without_a_list_of_processors_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "CPUINFO", tmp_path / "none")
    assert short_numbers() == ()
