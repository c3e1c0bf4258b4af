"""Weights on loan: tensors that are read from disk while they are needed, and dropped afterwards.

A streamed model is an ordinary model in which most tensors are on the meta device. Each of them is a placeholder: its
`Origin` says where its values are. While a part of the model is on loan, real tensors stand in place of the
placeholders of that part, at every place where a placeholder occurs, so that tied tensors are read once and stay tied.
Afterwards the placeholders are put back.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from laconic.formats import Masked, PackedCodes
from laconic.formats.sparse_stack import SparseStack
from laconic.numerics.moments import check_finite

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


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A layer that is read whole and unpacked.

    Args:
        path: its path, with which the names of its tensors begin.
        empty: a layer of the same specification on the meta device, in packed form.
    """

    path: str
    empty: Masked | SparseStack


@dataclass(frozen=True, eq=False)
class Origin:
    """The place of the values of one tensor on disk.

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


@dataclass(frozen=True, eq=False)
class _Frame:
    """The parts of a model that one context needs."""

    model: nn.Module
    paths: tuple[str, ...]


class Loans:
    """The tensors of a streamed model on disk, and those of them that are in memory now.

    Args:
        source: the model, as errors name it.
        device: the device that tensors on loan are on.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self.source, self.device = source, device
        # By the id of the placeholder, which the origin keeps alive.
        self._origins: dict[int, Origin] = {}
        # By the id of the placeholder, each with the version that it was read in.
        self._lent: dict[int, tuple[Tensor, int]] = {}
        self._frames: list[_Frame] = []

    def register(self, origins: Iterable[Origin]) -> None:
        """Add tensors that can be lent."""
        self._origins |= {id(origin.placeholder): origin for origin in origins}

    @property
    def placeholders(self) -> dict[int, Tensor]:
        """Every placeholder by its id: a memo for `copy.deepcopy`, so that a copy of the model can be streamed too."""
        return {key: origin.placeholder for key, origin in self._origins.items()}

    @contextmanager
    def lend(self, model: nn.Module, paths: Collection[str]) -> Iterator[None]:
        """A context in which the tensors below some paths have their values.

        Args:
            model: a streamed model, or a copy of one that shares its placeholders.
            paths: paths of modules; "" is the whole model.

        Raises:
            UserError: the tensors cannot be read, or are not finite.
        """
        frame = _Frame(model, tuple(paths))
        wanted = [self._origins[id(tensor)] for tensor in _tensors_below(frame) if id(tensor) in self._origins]
        fetched = self.fetch([origin for origin in wanted if id(origin.placeholder) not in self._lent])
        self._lent |= {key: (tensor, tensor._version) for key, tensor in fetched.items()}
        substitute(model, {id(origin.placeholder): self._lent[id(origin.placeholder)][0] for origin in wanted})
        self._frames.append(frame)
        try:
            yield
        except BaseException:
            self._frames.remove(frame)
            self._take_back(model)
            raise
        self._frames.remove(frame)
        changed = self._take_back(model)
        assert not changed, f"tensors of {frame.paths} were changed in place and not written back"

    def _take_back(self, model: nn.Module) -> bool:
        """Put the placeholders back in a model, in place of all tensors that no context needs there any more.

        Returns:
            Whether one of these tensors was changed in place, a change that is lost.
        """
        needed_here = self._needed(frame for frame in self._frames if frame.model is model)
        released = {key: lent for key, lent in self._lent.items() if id(lent[0]) not in needed_here}
        placeholders = {id(tensor): self._origins[key].placeholder for key, (tensor, _) in released.items()}
        present, needed = substitute(model, placeholders), self._needed(self._frames)
        for key, (tensor, _) in released.items():
            if id(tensor) not in needed:
                del self._lent[key]
        return any(id(tensor) in present and tensor._version != version for tensor, version in released.values())

    def _needed(self, frames: Iterable[_Frame]) -> set[int]:
        return {id(tensor) for frame in frames for tensor in _tensors_below(frame)}

    def fetch(self, origins: Collection[Origin]) -> dict[int, Tensor]:
        """Read tensors from disk.

        Args:
            origins: their origins, each once.

        Returns:
            The tensors by the id of the placeholder. Tensors of a packed layer that are not asked for are left out.

        Raises:
            UserError: they cannot be read, or are not finite.
        """
        by_reader: dict[TensorReader, list[Origin]] = {}
        for origin in origins:
            by_reader.setdefault(origin.reader, []).append(origin)
        fetched: dict[int, Tensor] = {}
        for reader, group in by_reader.items():
            layers = {origin.layer.path: origin.layer for origin in group if origin.layer is not None}
            stored = {path: [f"{path}.{name}" for name in layer.empty.state_dict()] for path, layer in layers.items()}
            plain = [origin.name for origin in group if origin.layer is None]
            tensors = reader.read([*plain, *(name for names in stored.values() for name in names)])
            for name, tensor in tensors.items():
                check_finite(
                    tensor,
                    f"The model '{self.source}' has NaN or infinite values in '{name}'; use a sound checkpoint.",
                )
            unpacked = {path: _unpack(layer, tensors) for path, layer in layers.items()}
            for origin in group:
                found = tensors[origin.name] if origin.layer is None else unpacked[origin.layer.path][origin.name]
                fetched[id(origin.placeholder)] = like(found.to(self.device), origin.placeholder)
        return fetched


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


def _tensors_below(frame: _Frame) -> Iterator[Tensor]:
    """The tensors below the paths of a frame, each once."""
    tensors = [t for path in frame.paths for _, _, t in tensors_below(frame.model.get_submodule(path))]
    yield from {id(tensor): tensor for tensor in tensors}.values()


def _unpack(layer: PackedLayer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a packed layer in memory, by their names in it.

    Args:
        layer: the layer.
        tensors: its tensors in a file, by their names in the model.
    """
    full = copy.deepcopy(layer.empty)
    new = {
        id(tensor): like(tensors[f"{layer.path}.{name}"], tensor)
        for name, tensor in full.state_dict(keep_vars=True).items()
    }
    substitute(full, new)
    full.unpack()
    return {**dict(full.named_parameters()), **dict(full.named_buffers())}


def like(tensor: Tensor, placeholder: Tensor) -> Tensor:
    """The tensor as a parameter if the placeholder is one, with or without gradients as that has."""
    if isinstance(placeholder, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=placeholder.requires_grad)
    return tensor.detach()
