"""A list of shards names each tensor once, files that are there and are of the folder; no two files hold one tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.errors import UserError
from laconic.model import check_model
from tests.architectures import BY_NAME

LIST = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["llama"].model().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    check_model(str(tmp_path / "model"))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.safetensors", "names the file 'nowhere.safetensors', which is not there; fetch the missing files"),
        ("", "names the file '', which is not there"),
        ("a\0b", "which is not there"),
        ("a" * 5000, "names the file 'aaa.* … aaa.*', which is not there"),
        ("../model/a.safetensors", r"must be one in the same folder; got '\.\./model/a\.safetensors'"),
    ],
    ids=["nowhere", "empty", "NUL", "long", "outside"],
)
def test_names_of_files(folder: Path, name: str, sentence: str) -> None:
    said = json.loads((folder / LIST).read_text())
    said["weight_map"]["lm_head.weight"] = name
    (folder / LIST).write_text(json.dumps(said))
    with pytest.raises(UserError, match=sentence):
        check_model(str(folder))


def test_a_tensor_that_is_named_twice(folder: Path) -> None:
    text = (folder / LIST).read_text()
    (folder / LIST).write_text(
        text.replace('"lm_head.weight":', '"lm_head.weight": "other.safetensors", "lm_head.weight":')
    )
    with pytest.raises(UserError, match=r"index\.json' of the model '.*' names 'lm_head\.weight' twice; use the list"):
        check_model(str(folder))


def test_a_tensor_in_two_files(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: torch.zeros_like(tensor)}, second, {"format": "pt"})
    with pytest.raises(
        UserError, match=f"hold '{name}' twice, in '{first.name}' and in '{second.name}'; use files that"
    ):
        check_model(str(folder))


def test_weights_that_config_json_names(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "transformers_weights": "other.safetensors"}))
    with pytest.raises(
        UserError, match=r"names the file 'other\.safetensors' under transformers_weights, which is not"
    ):
        check_model(str(folder))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"max_new_tokens": -3}, "max_new_tokens"),
        ({"watermarking_config": 5}, "'int' object has no attribute"),
        ({"cache_implementation": "nosuch"}, "nosuch"),
    ],
)
def test_a_generation_config_that_cannot_be_used(folder: Path, said: dict[str, object], reason: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(
        UserError, match=f"^The file 'generation_config.json' of the model '.*' cannot be used: .*{reason}"
    ):
        check_model(str(folder))
