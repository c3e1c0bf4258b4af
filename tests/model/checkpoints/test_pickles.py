"""Weights that exist only as pickles are read, tensors alone; nothing in one is ever run."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model import check_model, load
from tests.architectures import BY_NAME, outputs


def save_config(model: PreTrainedModel, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def save_pickled(model: PreTrainedModel, folder: Path, *, zipped: bool = True, **others: object) -> None:
    """Save as transformers did before safetensors."""
    save_config(model, folder)
    held = OrderedDict({**model.state_dict(), **others})
    torch.save(held, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def save_in_shards(model: PreTrainedModel, folder: Path) -> None:
    save_config(model, folder)
    tensors = model.state_dict()
    names = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if names[name] == file}, folder / file)
    said = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(said))


class Harmless:
    """Its pickle asks for a function to be called when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["bert-classifier", "roberta-masked", "gpt2", "bart", "t5", "albert-masked"])
def test_numbers_ties_and_dtype(tmp_path: Path, name: str, dtype: torch.dtype, zipped: bool) -> None:
    model = BY_NAME[name].model().to(dtype)
    save_pickled(model, tmp_path, zipped=zipped)
    lm = load(str(tmp_path))
    assert lm.dtype is dtype
    assert torch.equal(outputs(lm.model), outputs(model.float()))
    assert lm.model.all_tied_weights_keys == model.all_tied_weights_keys
    assert len(list(lm.model.parameters())) == len(list(model.parameters()))


def test_shards(tmp_path: Path) -> None:
    model = BY_NAME["bert-masked"].model()
    save_in_shards(model, tmp_path)
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model))


def test_names_of_before_2019(tmp_path: Path) -> None:
    model = BY_NAME["bert-classifier"].model()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state_dict().items()
    }
    assert set(old) != set(model.state_dict())
    save_config(model, tmp_path)
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model))


def test_a_dtype_that_the_configuration_does_not_say(tmp_path: Path) -> None:
    save_pickled(BY_NAME["gpt2"].model().half(), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "dtype": None}))
    assert load(str(tmp_path)).dtype is torch.float16


def test_safetensors_win(tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_code_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    save_pickled(BY_NAME["gpt2"].model(), tmp_path, zipped=zipped, more=Harmless(tmp_path / "run"))
    for read in (check_model, load):
        with pytest.raises(
            UserError, match=r"'pytorch_model\.bin'.* asks to run '\S+', .* only tensors; use safetensors"
        ):
            read(str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_whole_pickled_model_is_no_table(tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    save_pickled(model, tmp_path)
    torch.save(model, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"asks to run 'transformers\.models\.gpt2\.modeling_gpt2\.GPT2LMHeadModel'"):
        check_model(str(tmp_path))
    for held in ({"state_dict": dict(model.state_dict())}, {1: torch.zeros(1)}):
        torch.save(held, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"holds no table of tensors by name; save model\.state_dict"):
            check_model(str(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("length", [0, 40, -200])
def test_cut_off(tmp_path: Path, zipped: bool, length: int) -> None:
    save_pickled(BY_NAME["gpt2"].model(), tmp_path, zipped=zipped)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"'pytorch_model\.bin' is damaged or cut off \(.+\); fetch it again"):
        load(str(tmp_path))


def test_a_missing_shard(tmp_path: Path) -> None:
    save_in_shards(BY_NAME["bert-masked"].model(), tmp_path)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"names the file 'pytorch_model-00002-of-00002\.bin', which is not there"):
        check_model(str(tmp_path))


def test_other_frameworks(tmp_path: Path) -> None:
    save_pickled(BY_NAME["gpt2"].model(), tmp_path)
    shutil.move(tmp_path / "pytorch_model.bin", tmp_path / "tf_model.h5")
    with pytest.raises(UserError, match=r"has its weights in tf_model\.h5, for TensorFlow; convert them"):
        check_model(str(tmp_path))
