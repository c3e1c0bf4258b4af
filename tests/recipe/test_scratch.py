"""The scratch folder of a streamed run: what stays in it after an error, and who may use it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from laconic.errors import Notice, UserError
from laconic.model import load
from laconic.recipe import recipe_from, run
from laconic.recipe.scratch import lock_file, open_scratch
from tests.recipe.test_stream import GPTQ, LOW_RANK, spelled

WRITES = {
    "hidden states": "laconic.calibrate.spill._write",
    "a part": "laconic.model.loans_parts.save_file",
    "a list": "pathlib.Path.write_text",
}


def fill_disk(target: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a function that writes files fail after some calls, as on a full disk."""
    module, _, name = target.rpartition(".")
    owner = pytest.importorskip(module) if module != "pathlib.Path" else Path
    write, calls = getattr(owner, name), 0

    def fail(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
        return write(*arguments, **named)

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
@pytest.mark.parametrize(
    ("write", "after", "parts"),
    [("hidden states", 5, 0), ("a part", 1, 1), ("a list", 0, 0), ("a list", 4, 1)],
)
def test_a_full_disk_is_one_sentence_and_the_same_run_goes_on(
    write: str, after: int, parts: int, tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LOW_RANK if write == "hidden states" else GPTQ
    recipe = recipe_from(spelled(tiny_model, texts, step, stream=True))
    expected = run(recipe, tmp_path / "whole").to_json()
    sentence = r"^'[^']*' cannot be written: No space left on device; free some space, and run the same command again.$"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=sentence):
        fill_disk(WRITES[write], after, patch)
        run(recipe, tmp_path / "out")
    kept = [file for folder in tmp_path.glob(".out.scratch*") for file in folder.rglob("*.safetensors")]
    assert len(kept) == parts
    assert not (tmp_path / "out").exists()
    assert run(recipe, tmp_path / "out").to_json()["sites"] == expected["sites"]
    mine, other = (load(str(tmp_path / folder)).model.state_dict() for folder in ("whole", "out"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_output_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    folder, output = tmp_path / "scratch", tmp_path / "out"
    with FileLock(lock_file(output)), pytest.raises(UserError, match=r"Another run is writing '.*out'; wait for it"):
        open_scratch(folder, "key", output).__enter__()
    assert not folder.exists()
    # Another recipe has another folder.
    with open_scratch(folder, "key", output), pytest.raises(UserError, match="Another run is writing"):
        open_scratch(tmp_path / "other", "key", output).__enter__()
    assert [path for path in tmp_path.iterdir() if path != lock_file(output)] == []


@pytest.mark.parametrize(
    "file", ["0/parts/block.safetensors", "0/states/0-of-1/block.json", "0/plan.json", "0/choice.json", "0/other.json"]
)
def test_a_folder_stays_after_an_error_if_something_is_finished(tmp_path: Path, file: str) -> None:
    folder, made = tmp_path / "scratch", tmp_path / "scratch" / file
    is_kept = not file.endswith("other.json")

    def stop() -> None:
        with open_scratch(folder, "key", tmp_path / "out"):
            made.parent.mkdir(parents=True)
            made.touch()
            made.with_name(".block.safetensors.0123abcd").touch()
            raise KeyboardInterrupt

    if is_kept:
        with pytest.warns(Notice, match="The finished parts are kept in"), pytest.raises(KeyboardInterrupt):
            stop()
        with open_scratch(folder, "key", tmp_path / "out"):
            # What was half written is gone.
            assert [path.name for path in made.parent.iterdir()] == [made.name]
    else:
        with pytest.raises(KeyboardInterrupt):
            stop()
    assert not folder.exists()


def test_another_key_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    (folder / "0" / "parts").mkdir(parents=True)
    (folder / "0" / "parts" / "block.safetensors").touch()
    (folder / "key").write_text("one")
    with pytest.warns(Notice, match="has changed since"), open_scratch(folder, "other", tmp_path / "out"):
        assert {path.name for path in folder.iterdir()} == {"key"}
        assert (folder / "key").read_text() == "other"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^'.*' cannot be written: File exists; make its folder writable"):
        open_scratch(tmp_path / "file" / "scratch", "key", tmp_path / "file" / "out").__enter__()
