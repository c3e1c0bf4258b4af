"""A streamed run that was stopped in the middle goes on at the part it was at, with the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from laconic.compress import solve_and_replace
from laconic.errors import Notice, UserError
from laconic.model import load
from laconic.recipe import recipe_from, run
from tests.architectures import BY_NAME
from tests.conftest import SENTENCES
from tests.recipe.test_stream import BITS, GPTQ, LOW_RANK, NARROWER, SHORTER, spelled
from tests.stopped import StopError, assert_equal_runs

STEPS = {
    "rtn": [{"compress": {"method": "rtn:bits=4", "targets": ["all"]}}],
    "gptq": [GPTQ],
    "gptq in order": [{"compress": {"method": "gptq:bits=4,group_size=8", "sequential": True}}],
    "kfac-svd": [LOW_RANK],
    "fewer parts of blocks": [{"shorten": {"drop": 1, "select": "influence", "parts": "sublayers"}}, GPTQ],
    "narrower blocks": [NARROWER, GPTQ],
    "fewer blocks of factors": [LOW_RANK, SHORTER, BITS],
    "two steps": [GPTQ, {"compress": {"method": "rtn:bits=8", "targets": ["head"]}}],
}


def stop_after(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the run when it has replaced this many groups of layers, before the next one."""
    replace_group, count = solve_and_replace.replace_group, 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        if count == groups:
            raise StopError
        count += 1
        return replace_group(*arguments)

    monkeypatch.setattr(solve_and_replace, "replace_group", counted)


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_stopped_run_goes_on_to_the_same_model(
    steps, tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, *steps, stream=True))
    expected = run(recipe, tmp_path / "whole").to_json()
    groups = len(expected["sites"])
    # In the middle of the first block, in the next one, and in what then remains.
    for stop in (3, groups // 2 + 1, 2):
        with monkeypatch.context() as patch, pytest.raises(StopError):
            stop_after(stop, patch)
            run(recipe, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        seen: list[object] = []
        replace_group = solve_and_replace.replace_group
        patch.setattr(
            solve_and_replace, "replace_group", lambda *arguments: seen.append(0) or replace_group(*arguments)
        )
        found = run(recipe, tmp_path / "out").to_json()
    # Blocks that were finished were not solved again.
    assert len(seen) < groups
    assert_equal_runs(tmp_path, expected, found)


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_another_model_or_other_texts_do_not_go_on(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, GPTQ, stream=True))
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(8, patch)
        run(recipe, tmp_path / "out")
    texts.write_text(texts.read_text() + "\nOne more line of text that was not there before.\n" * 20)
    expected = run(recipe, tmp_path / "whole")
    with pytest.warns(Notice, match="has changed since"):
        run(recipe, tmp_path / "out")
    mine, other = (load(str(tmp_path / folder)).model.state_dict() for folder in ("whole", "out"))
    assert expected.output is not None and all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_a_damaged_part_is_one_sentence(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, GPTQ, stream=True))
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(8, patch)
        run(recipe, tmp_path / "out")
    (part, *_) = tmp_path.rglob("*.safetensors")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="of the scratch folder cannot be read"):
        run(recipe, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_an_encoder_decoder_with_gradients_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BY_NAME["bart"].model()
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"source": line, "target": line}) + "\n" for line in SENTENCES))
    step = {"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6}}
    recipe = recipe_from(spelled(tmp_path / "model", texts, step, stream=True))
    expected = run(recipe, tmp_path / "whole").to_json()
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(len(expected["sites"]) // 2 + 1, patch)
        run(recipe, tmp_path / "out")
    assert run(recipe, tmp_path / "out").to_json()["sites"] == expected["sites"]
    mine, other = (load(str(tmp_path / folder)).model.state_dict() for folder in ("whole", "out"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, GPTQ, stream=True))
    expected = run(recipe, tmp_path / "whole").to_json()
    code = f"""
import time
from pathlib import Path
from laconic.compress import solve_and_replace
from laconic.recipe import recipe_from, run
replace_group = solve_and_replace.replace_group
# Long enough to be killed in.
solve_and_replace.replace_group = lambda *arguments: time.sleep(0.2) or replace_group(*arguments)
run(recipe_from({spelled(tiny_model, texts, GPTQ, stream=True)!r}), Path({str(tmp_path / "out")!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not parts_of(tmp_path) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert parts_of(tmp_path)
    found = run(recipe, tmp_path / "out").to_json()
    assert found["sites"] == expected["sites"]
    files = sorted(file.name for file in (tmp_path / "whole").glob("*.safetensors"))
    assert files
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def parts_of(folder: Path) -> list[Path]:
    """The finished parts of all scratch folders in a folder."""
    return list(folder.glob(".out.scratch-*/*/parts/*.safetensors"))
