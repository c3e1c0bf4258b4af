"""A model of each kind goes through the command line whole: compressed, reloaded, evaluated, its bytes counted."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from laconic.cli.main import status
from laconic.model import LanguageModel, load
from laconic.store import ExtraFiles, save
from tests.architectures import GPT2

Output = pytest.CaptureFixture[str]
RECIPES = Path(__file__).resolve().parents[2] / "laconic" / "recipes"


def said(capsys: Output, *arguments: object) -> dict[str, object]:
    """The JSON object that a verb prints."""
    assert status([str(argument) for argument in (*arguments, "--json")]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def bart(models: Path, _: Path) -> Path:
    return models / "bart-g2p-us"


def stories(models: Path, _: Path) -> Path:
    return models / "stories260K"


def gpt2(models: Path, folder: Path) -> Path:
    """Random, with a real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(models / "stories260K")
    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**{**GPT2, **special, "vocab_size": len(tokenizer)})).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    return folder / "gpt2"


@pytest.mark.parametrize(
    ("model", "data", "task"),
    [
        (bart, "g2p", "seq2seq:g2p"),
        (stories, "builtin:pydoc", "perplexity:builtin:pydoc"),
        (gpt2, "builtin:pydoc", "perplexity:builtin:pydoc"),
    ],
)
@pytest.mark.slow
def test_the_whole_flow(
    capsys: Output,
    shared_models: Path,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Callable[[Path, Path], Path],
    data: str,
    task: str,
) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    in_memory: list[LanguageModel] = []

    def remember(lm: LanguageModel, folder: Path, beside: ExtraFiles) -> None:
        in_memory.append(lm)
        save(lm, folder, beside)

    monkeypatch.setattr(import_module("laconic.recipe.run"), "save", remember)
    original, small = model(shared_models, tmp_path), tmp_path / "small"
    record = said(capsys, "compress", original, "--method", "kfac-svd:multiple=1", "--keep", "0.6", "--allocate",
                  "spectrum", "--data", data, "--samples", 8, "-o", small)  # fmt: skip
    reloaded, made = load(str(small)).model.state_dict(), in_memory[0].model.state_dict()
    assert reloaded.keys() == made.keys() and all(torch.equal(reloaded[name], made[name]) for name in made)
    assert record["bytes"] == pytest.approx(bytes_on_disk(small, set(record["sites"])), rel=0.01)  # type: ignore[arg-type]
    assert record["bytes"] <= 0.6 * record["dense_bytes"]  # type: ignore[operator]
    judged = said(capsys, "evaluate", small, "--tasks", task, "--limit", 4, "--against", original)
    assert task in json.dumps(judged)


def bytes_on_disk(folder: Path, sites: set[str]) -> int:
    """Bytes in the file of every matrix at or within one of the sites."""
    stored = load_file(folder / "model.safetensors")
    return sum(
        tensor.nbytes
        for name, tensor in stored.items()
        if tensor.ndim == 2 and any(name.startswith(f"{site}.") for site in sites)
    )


@pytest.mark.parametrize(
    ("recipe", "method"),
    # The tiny matrices need ranks finer than a multiple of 8.
    [("pydoc-drone.yaml", "drone:multiple=1"), ("pydoc-two-groups.yaml", "{kfac-svd: {shrink: 0.2, multiple: 1}}")],
)
def test_a_shipped_recipe_runs_on_any_model(
    capsys: Output, tiny_model: Path, tmp_path: Path, recipe: str, method: str
) -> None:
    overrides = (f"model={tiny_model}", "samples=8", f"steps[0].compress.method={method}")
    record = said(capsys, "run", next(RECIPES.rglob(recipe)), *overrides, "-o", tmp_path / "small")
    assert record["bytes"] <= 0.6 * record["dense_bytes"]  # type: ignore[operator]
