"""Two processes stream what one does: each runs its share of the rows, and they divide the matrices."""

import errno
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from laconic.calibrate import spill
from laconic.compress import solve_and_replace
from laconic.errors import UserError
from laconic.model import load
from laconic.processes import rank
from laconic.recipe import recipe_from, run
from tests.architectures import outputs
from tests.launched import launched, start
from tests.pair import Pair
from tests.recipe.test_stream import BITS, GPTQ, LOW_RANK, NARROWER, SHORTER, spelled

STEPS: dict[str, list[dict[str, Any]]] = {
    "rtn": [{"compress": {"method": "rtn:bits=4", "targets": ["all"]}}],
    "gptq": [GPTQ],
    "all matrices": [{"compress": {"method": "gptq:bits=4,group_size=8", "targets": ["all"]}}],
    "gptq in order": [{"compress": {"method": "gptq:bits=4,group_size=8", "sequential": True}}],
    "kfac-svd": [LOW_RANK],
    "spectrum": [{"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6, "allocate": "spectrum"}}],
    "yaqa": [{"compress": {"method": "yaqa:bits=4,group_size=8"}}],
    "kfac-prune": [{"compress": {"method": "kfac-prune:sparsity=0.5"}}],
    "wlra": [{"compress": {"method": "wlra:multiple=1", "keep": 0.6}}],
    "narrower": [NARROWER, GPTQ],
    "shorter": [{"shorten": {"drop": 1, "select": "influence", "parts": "sublayers"}}, GPTQ],
    "shorter by gates": [{"shorten": {"drop": 1, "select": "taylor"}}],
    "factors": [LOW_RANK, SHORTER, BITS],
    "corrected": [LOW_RANK, {"correct": {}}],
}


def streamed(recipe: dict[str, Any], output: Path) -> dict[str, Any]:
    return run(recipe_from(recipe), output).to_json()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_two_processes_write_what_one_writes(steps, pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts, *steps, stream=True, batch_size=2)
    first, second = pair(streamed, recipe, tmp_path / "two")
    assert isinstance(first, dict), first
    assert first == second
    one = streamed(recipe, tmp_path / "one")
    for key in ("bytes", "dense_bytes", "sites", "dropped"):
        assert first[key] == one[key]
    expected, found = (outputs(load(str(tmp_path / name)).model) for name in ("one", "two"))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    # Neither scratch files nor locks stay.
    assert sorted(path.name for path in tmp_path.iterdir() if path != texts) == ["one", "two"]


def failing(function: Callable[..., Any], calls: int, error: Exception) -> Callable[..., Any]:
    """The function, which fails after some calls in the second process."""
    left = calls

    def fail(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and rank() == 1:
            raise error
        return function(*arguments)

    return fail


def on_a_full_disk(recipe: dict[str, Any], output: Path) -> dict[str, Any]:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch.object(spill, "_write", failing(spill._write, 0, full)):
        return streamed(recipe, output)


def stopped(recipe: dict[str, Any], output: Path, groups: int) -> dict[str, Any]:
    replaced = failing(solve_and_replace.replace_group, groups, UserError("Stopped."))
    with patch.object(solve_and_replace, "replace_group", replaced):
        return streamed(recipe, output)


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
@pytest.mark.parametrize("step", [GPTQ, LOW_RANK], ids=["inputs", "gradients"])
def test_both_go_on_where_one_has_stopped(step, pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts, step, stream=True, batch_size=2)
    first, second = pair(streamed, recipe, tmp_path / "whole")
    assert first == second and isinstance(first, dict), first
    assert pair(stopped, recipe, tmp_path / "out", 3) == ["Stopped."] * 2
    assert len(parts_of(tmp_path)) == 1
    full = pair(on_a_full_disk, recipe, tmp_path / "out")
    assert full[0] == full[1] and "cannot be written: No space left" in full[0]
    assert len(parts_of(tmp_path)) == 1 and not (tmp_path / "out").exists()
    found, other = pair(streamed, recipe, tmp_path / "out")
    assert found == other and found["sites"] == first["sites"]
    assert files(tmp_path / "out") == files(tmp_path / "whole") != {}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_process_may_have_no_rows(pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts, LOW_RANK, stream=True, batch_size=6)
    first, second = pair(streamed, recipe, tmp_path / "two")
    assert first == second and isinstance(first, dict), first
    run(recipe_from(recipe), tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one") != {}


def parts_of(folder: Path) -> list[Path]:
    return list(folder.glob(".out.scratch-*/*/parts/*.safetensors"))


@pytest.mark.slow
def test_processes_that_were_killed_go_on(pair: Pair, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    options = f"--method gptq:bits=4,group_size=8 --data {texts} --samples 6 --max-length 128 --batch-size 2 --stream"
    command = ("-m", "laconic", "compress", tiny_model, *shlex.split(options), "-o", tmp_path / "out")
    programs = start(*command, cache=tmp_path / "cache")
    until = time.monotonic() + 100
    while not parts_of(tmp_path) and programs[0].poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    for program in programs:
        program.kill()
        program.communicate()
    assert parts_of(tmp_path) and not (tmp_path / "out").exists()
    said = launched(*command, cache=tmp_path / "cache")
    assert [code for code, *_ in said] == [0, 0], said
    recipe = spelled(tiny_model, texts, GPTQ, stream=True, batch_size=2)
    assert isinstance(pair(streamed, recipe, tmp_path / "whole")[0], dict)
    assert files(tmp_path / "out") == files(tmp_path / "whole") != {}
