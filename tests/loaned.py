"""Compare the tensors of two models, count those in memory, and change what a checkpoint holds."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.architectures import EVERY_ARCHITECTURE, Architecture
from tests.experts import MIXTURES
from tests.model.test_hybrids import HYBRIDS
from tests.vision import MODELS as VISION

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{architecture.name: architecture.model for architecture in EVERY_ARCHITECTURE},
    **{name: Architecture(name, build).model for name, (build, *_) in {**MIXTURES, **HYBRIDS, **VISION}.items()},
}


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer at every place that it has."""
    return {
        f"{path}.{name}": tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


def nbytes(model: nn.Module) -> int:
    """Bytes of the tensors that are in memory."""
    tensors = {id(tensor): tensor for tensor in tensors_by_name(model).values() if not tensor.is_meta}
    return sum(tensor.nbytes for tensor in tensors.values())


def assert_equal(model: nn.Module, expected: nn.Module) -> None:
    """All tensors are equal in values, dtype and gradients, and the same ones are tied."""
    ours, theirs = tensors_by_name(model), tensors_by_name(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert type(ours[name]) is type(tensor), name
        assert (ours[name].dtype, ours[name].requires_grad) == (tensor.dtype, tensor.requires_grad), name
        assert torch.equal(ours[name], tensor), name
    assert _tied(ours) == _tied(theirs)


def _tied(tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), set()).add(name)
    return set(map(frozenset, names.values()))


def change_tensor(folder: str, name: str, tensor: Tensor | None) -> None:
    file = Path(folder) / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, file, {"format": "pt"})
