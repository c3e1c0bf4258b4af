"""A recipe is run: its checks before weights are loaded, its record, and its saved model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from laconic.compress import Step
from laconic.errors import UserError
from laconic.model import load
from laconic.recipe import read_recipe, recipe_from, run
from laconic.recover.training import Training
from laconic.store import file_bytes
from tests.architectures import BY_NAME
from tests.conftest import SENTENCES

RECIPES = Path(__file__).resolve().parents[2] / "laconic" / "recipes"


def spelled(model: Path, data: Path, **compress: object) -> dict[str, object]:
    step = {"method": "kfac-svd:multiple=1", "keep": 0.5, **compress}
    return {"model": str(model), "data": str(data), "samples": 6, "steps": [{"compress": step}]}


def test_the_record_is_what_was_saved(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    record = run(recipe_from(spelled(tiny_model, texts, allocate="spectrum")), output)
    said = record.to_json()
    assert said["bytes"] <= 0.5 * said["dense_bytes"]
    assert said["file_bytes"] == file_bytes(output)
    # What left the file is what the record says was saved; the headers of more tensors are the rest.
    assert abs(file_bytes(tiny_model) - said["file_bytes"] - (said["dense_bytes"] - said["bytes"])) < 4096
    assert set(said["sites"]) == {site.name for site in load(str(tiny_model)).sites()}
    assert read_recipe(output / "recipe.yaml") == record.recipe
    assert record.recipe.max_length == 128


def test_two_steps_count_against_the_matrices_of_the_first(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts)
    recipe["steps"] = [
        {"compress": {"method": "svd:multiple=1", "keep": 0.6, "targets": ["ffn"]}},
        {"compress": {"method": "svd:rank=2", "targets": ["re:intermediate.dense.left$", "attention"]}},
    ]
    record = run(recipe_from(recipe), tmp_path / "small")
    stored = sum(tensor.numel() for name, tensor in load(str(tmp_path / "small")).model.state_dict().items()
                 if ".layer." in name and tensor.ndim == 2)  # fmt: skip
    assert record.changes.nbytes == 4 * stored


def test_shots_of_growing_sparsity_count_against_the_dense_matrices(
    tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    recipe = spelled(tiny_model, texts)
    shots = [{"wanda": {"sparsity": sparsity, "within": "matrix"}} for sparsity in (0.3, 0.6)]
    recipe["steps"] = [{"compress": {"method": shot, "allocate": "global"}} for shot in shots]
    record = run(recipe_from(recipe), tmp_path / "small")
    sites = load(str(tmp_path / "small")).sites()
    numel = sum(rows * columns for rows, columns in (site.shape for site in sites))
    assert sum(int((site.weight() == 0).sum()) for site in sites) == round(0.6 * numel)
    assert record.changes.dense_nbytes == 4 * numel
    # A bit for each weight, and those that are kept.
    assert record.changes.nbytes == 4 * (numel - round(0.6 * numel)) + numel // 8


def test_narrower_heads_count_like_any_matrix(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts)
    narrow = {"shrink-heads": {"keep": 0.5, "multiple": 1}}
    recipe["steps"] = [narrow, {"compress": {"method": "svd:rank=4", "targets": ["attention"]}}]
    record = run(recipe_from(recipe), tmp_path / "small")
    said = record.to_json()
    # Eight square matrices, half of each, and of that factors of rank 4.
    assert (said["dense_bytes"], said["bytes"]) == (8 * 4 * 32 * 32, 8 * 4 * 4 * (32 + 16))
    assert record.changes.matrices == len(said["sites"]) == 8
    assert [path.name for path in (tmp_path / "small").glob("plan*")] == ["plan.yaml"]
    assert read_recipe(tmp_path / "small" / "recipe.yaml") == record.recipe
    alone = run(recipe_from({**recipe, "steps": [narrow]}), tmp_path / "narrow")
    assert (alone.to_json()["bytes"], alone.to_json()["sites"]) == (said["dense_bytes"] // 2, {})
    assert not list((tmp_path / "narrow").glob("plan*"))
    # The biases of query, key and value shrink too.
    left = file_bytes(tiny_model) - alone.file_bytes - said["dense_bytes"] // 2
    assert abs(left - 4 * 2 * 3 * 16) < 512


def test_heads_that_cannot_shrink_are_named_before_weights_are_loaded(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BY_NAME["llama"].model().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys.modules["laconic.recipe.entry"], "load", None)
    recipe = {**spelled(tmp_path / "model", texts), "steps": [{"shrink-heads": {"keep": 0.5}}]}
    with pytest.raises(UserError, match="The heads of this 'llama' cannot shrink"):
        run(recipe_from(recipe), tmp_path / "small")


BY_THE_CLOCK = "sst2-latency"
"""No factors of a tiny matrix are faster than the matrix."""
ABOVE = "studies"
"""The folder of what is made of recipes, and is none."""
SHIPPED = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.stem != BY_THE_CLOCK and path.parent.name != ABOVE]


DEEPEST = "kd-student"
"""It names the sixth block of its teacher."""


@pytest.fixture
def deep_model(path: Path, tiny_model: Path, models_folder: Path) -> Path:
    """Deep and wide enough for the blocks that go and the ranks that stay; in half precision, as what they name."""
    blocks = 6 if path.stem == DEEPEST else 4
    folder = models_folder / str(blocks)
    if folder.exists():
        return folder
    sizes = {"num_hidden_layers": blocks, "hidden_size": 192, "intermediate_size": 192}
    config = BertConfig.from_pretrained(tiny_model, num_labels=2, **sizes)
    torch.manual_seed(0)
    BertForSequenceClassification(config).half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models that several recipes are run on."""
    return tmp_path_factory.mktemp("models")


def shortened(step: Step) -> Step:
    """A training of as many rows as there are; any other step as it is."""
    return replace(step, rows=24, epochs=1.0, batch_size=8, evaluations=1) if isinstance(step, Training) else step


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*needs rows of a multiple of 256 columns:laconic.errors.Notice")
@pytest.mark.slow
def test_every_shipped_recipe_runs(path: Path, deep_model: Path, tmp_path: Path) -> None:
    """On a tiny model and in a moment, but with the steps as they stand."""
    shipped = read_recipe(path)
    rows = [{"text": sentence, "label": at % 2} for at, sentence in enumerate(SENTENCES * 4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    steps = tuple(shortened(step) for step in shipped.steps)
    data = None if shipped.data is None else str(tmp_path / "rows.jsonl")
    recipe = replace(shipped, model=str(deep_model), data=data, steps=steps, samples=4, evaluate=None)
    record = run(recipe, tmp_path / "small")
    # A rank may be more than these matrices have.
    assert record.changes.nbytes <= record.changes.dense_nbytes
    lm = load(str(tmp_path / "small"))
    with torch.no_grad():
        assert torch.isfinite(lm.model(torch.tensor([[2, 3, 4]])).logits).all()


def test_the_plan_of_one_run_makes_the_same_model_again(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    first = run(recipe_from(spelled(tiny_model, texts, allocate="spectrum")), tmp_path / "first")
    again = recipe_from(spelled(tiny_model, texts, plan=first.to_json()["sites"]))
    run(again, tmp_path / "second")
    one, two = (load(str(tmp_path / name)).model.state_dict() for name in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "./nowhere"}, "no model folder"),
        ({"data": "./nowhere.txt"}, "nowhere"),
        ({"data": None}, "recipe.data is missing"),
        ({"evaluate": {}}, "recipe.evaluate has neither tasks nor cost; give it tasks"),
        ({"evaluate": {"tasks": [], "cost": False, "limit": 3}}, "recipe.evaluate has neither tasks nor cost"),
        ({"evaluate": {"tasks": ["glue/sst3"]}}, "sst"),
        (
            {"evaluate": {"tasks": ["perplexity:builtin:pydoc"]}},
            "needs .* is a classification model",
        ),
    ],
)
def test_what_can_be_checked_is_checked_before_weights_are_loaded(
    tiny_model: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    sentence: str,
) -> None:
    monkeypatch.setattr(sys.modules["laconic.recipe.entry"], "load", pytest.fail)
    with pytest.raises(UserError, match=sentence):
        run(recipe_from({**spelled(tiny_model, texts), **change}), tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_row_that_cannot_be_read_is_found_before_weights_are_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a cat"}\n{"text": 3}\n')
    monkeypatch.setattr(sys.modules["laconic.recipe.entry"], "load", pytest.fail)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the field 'text' must be text; got 3"):
        run(recipe_from(spelled(tiny_model, rows)), tmp_path / "small")


def test_an_output_that_exists_is_not_touched(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        run(recipe_from(spelled(tiny_model, texts)), tmp_path)


def test_home_is_understood_and_its_files_are_counted(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = recipe_from({**spelled(tiny_model, texts, method="svd"), "evaluate": {"cost": True}})
    record = run(recipe, Path("~/small"))
    assert record.output == tmp_path / "small"
    assert record.file_bytes == file_bytes(tmp_path / "small") > 0


def test_each_of_several_plans_can_be_used_again(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    recipe = spelled(tiny_model, texts)
    first = {"method": "svd:multiple=1", "keep": 0.6, "targets": ["ffn"]}
    second = {"method": "svd:rank=2", "targets": ["re:intermediate.dense.left$", "attention"]}
    run(recipe_from({**recipe, "steps": [{"compress": first}]}), tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("plan*")] == ["plan.yaml"]
    run(recipe_from({**recipe, "steps": [{"compress": first}, {"compress": second}]}), tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").glob("plan*")) == ["plan-1.yaml", "plan-2.yaml"]
    planned = [
        {"compress": {"method": "svd", "keep": 0.5, "plan": str(tmp_path / "two" / f"plan-{number}.yaml")}}
        for number in (1, 2)
    ]
    run(recipe_from({**recipe, "steps": planned}), tmp_path / "again")
    one, two = (load(str(tmp_path / name)).model.state_dict() for name in ("two", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
