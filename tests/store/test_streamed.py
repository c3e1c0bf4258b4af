"""A streamed model is saved as the one in memory: the same tensors, configuration and other files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.mixtral.modeling_mixtral import MixtralPreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Gptq, KfacPrune, Svd
from laconic.model import load
from laconic.model.loading import load_streamed
from laconic.store import save
from laconic.store.part_structures import PartStructures
from laconic.store.streamed import save_streamed
from laconic.store.streamed_parts import read_chunks
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES

STEPS = {
    "none": None,
    "svd": Compress(method=Svd(), keep=0.5),
    "gptq of all matrices": Compress(method=Gptq(bits=8), targets=("all",)),
    "kfac-prune": Compress(method=KfacPrune(sparsity=0.5)),
}


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens")
@pytest.mark.parametrize("name", ["llama", "bert-classifier", "gpt2", "mixtral"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_both_ways_save_the_same_model(name, step, tmp_path) -> None:
    model = MIXTURES[name][0]() if name in MIXTURES else BY_NAME[name].model()
    model.bfloat16().save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch", structures=PartStructures())
    data = Calibration(labelled_batches(lm, 2))
    for one in (lm, streamed):
        if step is not None:
            step.apply(one, data)
    save(lm, tmp_path / "whole")
    save_streamed(streamed, tmp_path / "parts")
    expected, found = (load(str(tmp_path / folder)) for folder in ("whole", "parts"))
    assert type(expected.model) is type(found.model)
    tensors = found.model.state_dict()
    assert tensors.keys() == expected.model.state_dict().keys()
    for key, tensor in expected.model.state_dict().items():
        assert torch.equal(tensors[key], tensor), key
    config, other = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("whole", "parts"))
    assert config == other
    files = [
        {file.name for file in (tmp_path / folder).iterdir() if "safetensors" not in file.name}
        for folder in ("whole", "parts")
    ]
    assert files[0] == files[1]


def test_a_file_that_is_changed_while_it_is_written_is_noticed(tmp_path, monkeypatch) -> None:
    BY_NAME["llama"].model().save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    monkeypatch.setattr("laconic.store.streamed.read_chunks", lambda *args: (chunk + 1 for chunk in read_chunks(*args)))
    with pytest.raises(UserError, match="would have different values"):
        save_streamed(lm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_would_be_rounded_stay_in_float32_where_the_class_keeps_them(tmp_path) -> None:
    model = BY_NAME["t5"].model().half()
    for name, parameter in model.named_parameters():
        if name.endswith("wo.weight"):
            parameter.data = parameter.float() + 1e-5 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    assert lm.dtype is torch.float16
    save_streamed(lm, tmp_path / "out")
    expected, found = (load(str(tmp_path / folder)).model.state_dict() for folder in ("model", "out"))
    assert any(not torch.equal(tensor, tensor.half().float()) for tensor in expected.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_experts_that_the_class_keeps_in_float32_are_not_rounded_when_their_matrices_are_separated(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(MixtralPreTrainedModel, "_keep_in_fp32_modules", {"experts"})
    model = MIXTURES["mixtral"][0]().half()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.data = parameter.float() + 1e-5 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    assert lm.dtype is torch.float16
    save_streamed(lm, tmp_path / "out")
    expected, found = (
        {name: tensor for file in (tmp_path / folder).glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in ("model", "out")
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype is torch.float32) == (".experts." in name) == (tensor.dtype is torch.float32), name
        assert torch.equal(found[name], tensor), name
