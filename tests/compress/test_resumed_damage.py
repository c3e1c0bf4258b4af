"""A step on a streamed model that was stopped goes on to the same result when its scratch folder lost files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from laconic.compress import Compress
from tests.compress.test_resumed import METHODS, assert_same, llama, run, run_in_pieces, streamed

__all__ = ["llama"]


def states(scratch: Path, pattern: str = "*") -> list[Path]:
    return sorted(file for file in (scratch / "states").rglob(pattern) if file.is_file())


def empty_all(scratch: Path) -> None:
    for file in states(scratch):
        file.write_bytes(b"")


def cut_off(scratch: Path) -> None:
    for file in states(scratch, "*[!n]"):
        file.write_bytes(file.read_bytes()[:-1])


def change_a_number(scratch: Path) -> None:
    for file in states(scratch, "*[!n]"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 64
        file.write_bytes(content)


def lose_rows(scratch: Path) -> None:
    for file in states(scratch, "*.json"):
        file.write_text(file.read_text()[:40] if file.stat().st_size % 2 else "[]")


def remove_all(scratch: Path) -> None:
    shutil.rmtree(scratch / "states")


def damage_the_plan(scratch: Path) -> None:
    (scratch / "plan.json").write_text('{"plan": {')


def lose_the_first_part(scratch: Path) -> None:
    parts = sorted((scratch / "parts").glob("*.safetensors"))
    # Once, when there are two; otherwise the run would never end.
    if len(parts) > 1 and not (scratch / "lost").exists():
        (scratch / "lost").touch()
        min(parts, key=lambda file: file.stat().st_mtime_ns).unlink()


DAMAGES = [empty_all, cut_off, change_a_number, lose_rows, remove_all, damage_the_plan, lose_the_first_part]
CASES = [
    *(("kfac-svd", damage) for damage in DAMAGES),
    *((method, damage) for method in ("gptq", "gptq in order") for damage in (change_a_number, lose_the_first_part)),
]


@pytest.mark.filterwarnings("ignore:.*keeps .* of the bytes")
@pytest.mark.parametrize(("method", "damage"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_step_goes_on_without_files_that_were_lost(
    method: str, damage: Callable[[Path], None], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Compress(targets=("model.layers.[02].*", "head"), **METHODS[method])
    expected = run(streamed(llama, tmp_path / "whole"), step)
    stops, found = run_in_pieces(llama, tmp_path / "pieces", step, monkeypatch, damage)
    assert_same(found, expected)
    assert stops == 2 + (damage is lose_the_first_part)
