"""Quantized checkpoints as laconic reads them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice
from laconic.model import load
from laconic.store import save
from tests.model.checkpoints.codes import matrices


def read(folder: Path, method: str) -> PreTrainedModel:
    with pytest.warns(CheckpointNotice, match=f"is quantized by '{method}': its codes are turned into numbers"):
        lm = load(str(folder))
    # What is saved is a plain model.
    save(lm, folder / "saved")
    config = json.loads((folder / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    again = load(str(folder / "saved"))
    assert again.dtype is lm.dtype
    rounded = {name: tensor.to(lm.dtype).float() for name, tensor in lm.model.state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in again.model.state_dict().items())
    return lm.model


def has(model: PreTrainedModel, wanted: dict[str, Tensor]) -> bool:
    there = matrices(model)
    return bool(wanted) and all(torch.equal(there[name], matrix) for name, matrix in wanted.items())
