"""Single tensors are read from the files of a checkpoint, or one sentence says what is wrong with it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from laconic.errors import UserError
from laconic.model.loading import load, load_streamed
from tests.architectures import BY_NAME
from tests.loaned import assert_equal, change_tensor

BLOCK = "model.layers.1"
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    BY_NAME["llama"].model().bfloat16().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_tensor_that_is_not_finite_is_reported_when_it_is_lent(folder: str) -> None:
    change_tensor(folder, WEIGHT, torch.full((32, 48), float("nan")).bfloat16())
    lm = load_streamed(folder)
    with lm.on_loan("model.layers.0"):
        pass
    with (
        pytest.raises(UserError, match=rf"^The model '.*' has NaN or infinite values in '{WEIGHT}'"),
        lm.on_loan(BLOCK),
    ):
        pass


def test_a_tensor_that_is_missing_is_reported_at_once(folder: str) -> None:
    change_tensor(folder, WEIGHT, None)
    with pytest.raises(UserError, match=rf"incomplete: 1 of its tensors is missing, the first is '{WEIGHT}'"):
        load_streamed(folder)


def test_a_file_that_was_cut_off_is_reported(folder: str) -> None:
    lm = load_streamed(folder)
    file = Path(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^The weights of '.*' cannot be loaded: "), lm.on_loan(""):
        pass
    with pytest.raises(UserError, match=r"'model.safetensors' is damaged or cut off"):
        load_streamed(folder)


def test_tied_matrices_that_are_in_the_file_twice(tmp_path: Path) -> None:
    BY_NAME["llama-tied"].model().save_pretrained(tmp_path)
    words = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    for head in (words.clone(), words + 1):
        change_tensor(str(tmp_path), "lm_head.weight", head)
        whole, lm = load(str(tmp_path)), load_streamed(str(tmp_path))
        assert lm.model.all_tied_weights_keys == whole.model.all_tied_weights_keys
        with lm.on_loan(""):
            assert_equal(lm.model, whole.model)


def test_a_pickle_cannot_be_streamed(tmp_path: Path) -> None:
    model = BY_NAME["llama"].model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^The model '.*' cannot be streamed, as its weights are a pickle"):
        load_streamed(str(tmp_path))


def test_one_tensor_of_the_file_becomes_several(tmp_path: Path) -> None:
    model = BY_NAME["bert-masked"].model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    attention = "bert.encoder.layer.0.attention.self"
    parts = [tensors.pop(f"{attention}.{name}.weight") for name in ("query", "key", "value")]
    save_file({**tensors, f"{attention}.qkv.weight": torch.cat(parts)}, file, {"format": "pt"})
    register_checkpoint_conversion_mapping("bert", [split_of_qkv()], overwrite=True)
    try:
        lm = load_streamed(str(tmp_path))
        with lm.on_loan(f"{attention}.key"):
            assert torch.equal(lm.model.get_parameter(f"{attention}.key.weight"), parts[1])
            assert lm.model.get_parameter(f"{attention}.query.weight").is_meta
        with lm.on_loan(""):
            assert_equal(lm.model, load(str(tmp_path)).model)
    finally:
        register_checkpoint_conversion_mapping("bert", [], overwrite=True)


def split_of_qkv() -> WeightConverter:
    """The conversion of a file that stores query, key and value in one matrix."""
    targets = [f"attention.self.{name}.weight" for name in ("query", "key", "value")]
    return WeightConverter(["attention.self.qkv.weight"], targets, [Chunk(dim=0)])
