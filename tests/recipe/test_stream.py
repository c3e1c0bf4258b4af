"""`stream: true`: a recipe on one block at a time gives the same model, and says what it cannot do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import laconic
from laconic.errors import UserError
from laconic.model import load
from laconic.recipe import recipe_from, run
from laconic.recipe.run import estimate_run
from laconic.store import save
from tests.conftest import SENTENCES
from tests.evaluate.models import with_tokenizer


def spelled(model: Path, data: Path, *steps: dict, **settings: object) -> dict[str, object]:
    return {"model": str(model), "data": str(data), "samples": 6, "steps": list(steps), **settings}


GPTQ = {"compress": {"method": "gptq:bits=4,group_size=8"}}
LOW_RANK = {"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6}}
BITS = {"compress": {"method": "rtn:bits=8"}}
NARROWER = {"narrow": {"heads": 0.5, "channels": 0.5, "multiple": 1}}
SHORTER = {"shorten": {"drop": 1, "select": "influence"}}
CHAINS = {
    "one": (GPTQ,),
    "two": (LOW_RANK, BITS),
    "fewer blocks": (SHORTER, GPTQ),
    "narrower blocks": (NARROWER, GPTQ),
    "fewer blocks, corrected": (SHORTER, LOW_RANK, {"correct": {}}),
    "fewer and narrower blocks": (SHORTER, {"narrow": {"keep": 0.7, "importance": "variance"}}, LOW_RANK),
    "fewer blocks afterwards": (LOW_RANK, SHORTER, BITS),
    "scaled": ({"smoothquant": {"alpha": 0.5}}, {"compress": {"method": "dynamic-int8"}}),
}


def rounded(values: object) -> object:
    """JSON values without the last digits of numbers, which depend on where a matrix lies in memory."""
    return json.loads(json.dumps(values), parse_float=lambda number: round(float(number), 9))


@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS)
def test_a_streamed_recipe_gives_the_same_model(steps, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    whole = run(recipe_from(spelled(tiny_model, texts, *steps)), tmp_path / "whole")
    parts = run(recipe_from(spelled(tiny_model, texts, *steps, stream=True)), tmp_path / "parts")
    mine, other = whole.to_json(), parts.to_json()
    for key in ("bytes", "dense_bytes", "sites", "stacks", "dropped", "found"):
        assert rounded(mine[key]) == rounded(other[key])
    expected, found = (load(str(tmp_path / folder)).model.state_dict() for folder in ("whole", "parts"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    # The scratch folder is gone, and so is every partial folder.
    assert {path.name for path in tmp_path.iterdir()} >= {"whole", "parts"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_model_of_the_result_reads_the_output(tiny_model: Path, tmp_path: Path) -> None:
    result = laconic.compress(
        str(tiny_model), "gptq:bits=4,group_size=8", data=SENTENCES, samples=6, output=tmp_path / "small", stream=True
    )
    assert result.bytes < result.dense_bytes and all(site.bytes for site in result.sites.values())
    blocks = [block for _, found in result.record.lm.stacks() for _, block in found]
    assert all(tensor.is_meta for block in blocks for tensor in block.buffers())
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["structure"]


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"narrow": {"channels": 0.5, "anchored": True}}, "The step 'narrow' cannot be streamed: anchored runs"),
        ({"compress": {"method": "magnitude", "keep": 0.5, "allocate": "global"}}, "allocate: global compares all"),
        ({"compress": {"method": "gptq:bits=4", "anchored": True}}, "anchored runs the original"),
    ],
)
def test_what_needs_the_whole_model_is_refused_before_it_is_read(
    step, sentence, tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("laconic.recipe.streaming.load_streamed", None)
    with pytest.raises(UserError, match=sentence):
        run(recipe_from(spelled(tiny_model, texts, step, stream=True)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_streaming_needs_a_folder_to_write_to_and_a_model_to_read(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="stream needs output"):
        laconic.compress(str(tiny_model), "rtn:bits=4", stream=True)
    with pytest.raises(UserError, match="in memory already"):
        laconic.compress(load(str(tiny_model)).model, "rtn:bits=4", stream=True)


def test_a_process_on_another_machine_needs_the_same_disk(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.recipe.streaming.is_rank_zero", lambda: False)
    with pytest.raises(UserError, match=r"does not find the scratch folder .* name an output on a disk that all"):
        run(recipe_from(spelled(tiny_model, texts, GPTQ, stream=True)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "gptq:bits=4,group_size=8", "sequential": True}, "with sequential, 'shared' cannot be measured"),
        ({"method": "kfac-svd", "keep": 0.5}, "the gradients of 'shared' cannot be measured"),
    ],
)
def test_the_embedding_of_an_encoder_decoder_is_refused_before_it_is_read(
    settings: dict, reason: str, texts: Path, tmp_path: Path, monkeypatch
) -> None:
    save(with_tokenizer("t5"), tmp_path / "model")
    monkeypatch.setattr("laconic.recipe.streaming.load_streamed", None)
    # The first step leaves other layers than those that the model has.
    steps = [{"compress": {"method": "svd", "keep": 0.5}}, {"compress": {**settings, "targets": ["all"]}}]
    recipe = recipe_from(spelled(tmp_path / "model", texts, *steps, stream=True))
    with pytest.raises(UserError, match=rf"recipe\.steps\[1\]: The step 'compress' cannot be streamed: {reason}"):
        run(recipe, tmp_path / "out")
    found = estimate_run(replace(recipe, stream=None), tmp_path / "out")
    assert found.streamed is None and reason in str(found.unmeasured)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
