"""Placeholders of tensors that are on disk, and the places that their values come from."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.formats import Masked, PackedCodes
from laconic.formats.sparse_stack import SparseStack

PACKED = (Masked, SparseStack)
"""Layers whose tensors in memory have other names and shapes than those in a file."""


class TensorReader(Protocol):
    """Files that hold tensors of a model by name, in the form in which a saved model has them."""

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read the tensors of these names on the CPU, in the dtype that they have in memory.

        Raises:
            UserError: they cannot be read.
        """
        ...

    def read_chunks(self, name: str) -> Iterator[Tensor]:
        """Read one tensor likewise, in consecutive chunks (`laconic.model.loans_rows`).

        Raises:
            UserError: it cannot be read.
        """
        ...

    def read_rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Read some rows of a matrix likewise.

        Raises:
            UserError: they cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A layer that is read whole and unpacked.

    Args:
        path: its path, with which the names of its tensors begin.
        empty: a layer of the same specification on the meta device, in packed form.
    """

    path: str
    empty: Masked | SparseStack

    @property
    def stored(self) -> dict[str, Tensor]:
        """Its tensors in a file, by their names in the model; on the meta device."""
        return {f"{self.path}.{name}": tensor for name, tensor in self.empty.state_dict().items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make its tensors in memory, by their names in the layer, from those in a file."""
        full = copy.deepcopy(self.empty)
        stored = full.state_dict(keep_vars=True)
        substitute(full, {id(old): like(tensors[f"{self.path}.{name}"], old) for name, old in stored.items()})
        full.unpack()
        return {**dict(full.named_parameters()), **dict(full.named_buffers())}


@dataclass(frozen=True, eq=False)
class Origin:
    """The place that the values of one tensor come from.

    Args:
        placeholder: the tensor on the meta device that stands for it.
        reader: the files.
        name: the name of the tensor in them; in a packed layer, its name in the layer in memory.
        layer: the packed layer that has the tensor; None if the tensor is stored as it is.
    """

    placeholder: Tensor
    reader: TensorReader
    name: str
    layer: PackedLayer | None = None


def packed_layers(module: nn.Module, path: str = "") -> list[PackedLayer]:
    """An empty copy of every packed layer below a module.

    Args:
        module: the module; its layers may be packed or not, and on any device.
        path: its path.
    """
    found = {name: part for name, part in module.named_modules(prefix=path) if isinstance(part, PACKED)}
    return [PackedLayer(name, _empty(layer)) for name, layer in found.items()]


def _empty(layer: Masked | SparseStack) -> Masked | SparseStack:
    dtypes = [tensor.dtype for tensor in layer.parameters() if tensor.is_floating_point()]
    with torch.device("meta"):
        return type(layer).empty(**layer.spec()).to(dtypes[0])


def find_tensors(
    model: PreTrainedModel, names: Collection[str], layers: Collection[PackedLayer]
) -> list[tuple[Tensor, str, PackedLayer | None]]:
    """Find the tensors of a model that belong to names in a file, each with the name and the layer of its `Origin`.

    Args:
        model: the model, with its layers unpacked.
        names: the names in the file.
        layers: the packed layers among these tensors.
    """
    packed = {name for layer in layers for name in layer.stored}
    found: list[tuple[Tensor, str, PackedLayer | None]] = [
        (model.get_parameter_or_buffer(name), name, None) for name in names if name not in packed
    ]
    for layer in layers:
        module = model.get_submodule(layer.path)
        tensors = (*module.named_parameters(), *module.named_buffers())
        found += [(tensor, name, layer) for name, tensor in tensors]
    return found


def tensors_below(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer below a module: the module that has it, its name there, and the tensor."""
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield part, name, tensor


def substitute(model: nn.Module, tensors: Mapping[int, Tensor]) -> set[int]:
    """Replace tensors at every place of a model.

    Args:
        model: the model, changed in place.
        tensors: the new tensor by the id of the present one.

    Returns:
        The ids of the tensors that the model had.
    """
    places = [place for place in tensors_below(model) if id(place[2]) in tensors]
    for owner, name, tensor in places:
        registry: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
        registry[name] = tensors[id(tensor)]
        if isinstance(owner, PackedCodes):
            # Kernels keep copies of the codes.
            owner.drop_kernels()
    return {id(tensor) for _, _, tensor in places}


def like(tensor: Tensor, placeholder: Tensor) -> Tensor:
    """The tensor as a parameter if the placeholder is one, with or without gradients as that has."""
    if isinstance(placeholder, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=placeholder.requires_grad)
    return tensor.detach()


def to_placeholder(tensor: Tensor) -> Tensor:
    """A placeholder for a tensor in memory."""
    return like(torch.empty_like(tensor, device="meta"), tensor)


def empty_replaced(model: nn.Module, before: Iterable[nn.Module]) -> None:
    """Take the tensors from layers that were replaced.

    The sites of a model refer to the layers that they were found as, also after these were replaced.

    Args:
        model: the model.
        before: the modules that were in it before layers were replaced.
    """
    after = set(model.modules())
    for owner in before:
        if owner not in after:
            real = [tensor for _, _, tensor in tensors_below(owner) if not tensor.is_meta]
            substitute(owner, {id(tensor): to_placeholder(tensor) for tensor in real})
