"""Weights that must not be read: their file is whole, and every number in it is NaN, which no model is loaded with."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def spoil(folder: Path) -> None:
    """Put NaN in the place of every number in the weights of the model in `folder`."""
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as held:
        metadata = held.metadata()
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a mapping)
    nothing = {
        name: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    save_file(nothing, file, metadata)
