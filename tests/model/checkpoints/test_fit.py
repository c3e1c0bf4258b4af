"""Weights that are not those of the configuration are told before a number of them is read."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice, UserError
from laconic.model.loading import check_model, load
from tests.architectures import BY_NAME, EVERY_ARCHITECTURE
from tests.experts import MIXTURES

Tensors = dict[str, Tensor]
EVERY: dict[str, Callable[[], PreTrainedModel]] = {
    **{one.name: one.model for one in EVERY_ARCHITECTURE},
    **{name: build for name, (build, _, _) in MIXTURES.items()},
}


def without(tensors: Tensors, name: str) -> Tensors:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def of_another_shape(tensors: Tensors, name: str) -> Tensors:
    return {**tensors, name: tensors[name][..., 1:].clone()}


def with_one_more(tensors: Tensors, name: str) -> Tensors:
    return {**tensors, name.replace(".0.", ".77.", 1): tensors[name].clone()}


MISTAKES = {
    without: "are incomplete",
    of_another_shape: "has (the )?shape",
    with_one_more: "of the tensors in the file is not",
}


def matrix_of_a_block(tensors: Tensors) -> str:
    return next(name for name, tensor in sorted(tensors.items()) if tensor.dim() > 1 and ".0." in name)


@pytest.mark.parametrize("name", EVERY)
def test_every_architecture(tmp_path: Path, name: str) -> None:
    EVERY[name]().save_pretrained(tmp_path)
    check_model(str(tmp_path))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for changed, sentence in MISTAKES.items():
        save_file(changed(tensors, matrix_of_a_block(tensors)), file, {"format": "pt"})
        with pytest.raises(UserError, match=sentence):
            check_model(str(tmp_path))


@pytest.mark.parametrize(("changed", "sentence"), MISTAKES.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_pickles(tmp_path: Path, changed: Callable[[Tensors, str], Tensors], sentence: str) -> None:
    model = BY_NAME["llama"].model()
    model.config.save_pretrained(tmp_path)
    tensors = model.state_dict()
    torch.save(changed(tensors, matrix_of_a_block(tensors)), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            without,
            r"are incomplete: '{}' is missing, which other experts of the layer have; use a complete checkpoint\.",
        ),
        (
            of_another_shape,
            r"do not fit together: '{}' has the shape \(48, 31\), and other experts of the layer \(48, 32\); use "
            r"files that were saved together\.",
        ),
    ],
    ids=["missing", "of another shape"],
)
def test_one_expert(tmp_path: Path, changed: Callable[[Tensors, str], Tensors], sentence: str) -> None:
    # transformers 5.23: "We encountered some issues during automatic conversion of the weights."
    EVERY["mixtral"]().save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    save_file(changed(load_file(file), name), file, {"format": "pt"})
    with pytest.raises(UserError, match=f"^The weights of '.*' {sentence.format(re.escape(name))}$"):
        check_model(str(tmp_path))


def test_what_is_left_out_is_told_once(tmp_path: Path) -> None:
    BY_NAME["bert-masked"].model().save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "architectures": None}))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CheckpointNotice)
        check_model(str(tmp_path))
        assert not told
        load(str(tmp_path))
    assert [one.category for one in told if issubclass(one.category, CheckpointNotice)] == [CheckpointNotice]
