"""Weights on loan: tensors that are read from disk while they are needed, and dropped afterwards.

A streamed model is an ordinary model in which most tensors are on the meta device. Each of them is a placeholder: its
`Origin` says where its values are. While a part of the model is on loan, real tensors stand in place of the
placeholders of that part, at every place where a placeholder occurs, so that tied tensors are read once and stay tied.
Afterwards the placeholders are put back. A part that was changed is written back to a file first, from which it is
read from then on.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model.loans_origins import (
    Origin,
    TensorReader,
    empty_replaced,
    find_tensors,
    packed_layers,
    substitute,
    tensors_below,
    to_placeholder,
)
from laconic.model.loans_parts import (
    PartReader,
    Structures,
    check_shapes,
    part_file,
    read_header,
    report_misfit,
    write_part,
)
from laconic.model.loans_stored import StoredTensors
from laconic.model.site import has_module
from laconic.processes import on_rank_zero
from laconic.system import release_freed_memory


@dataclass(frozen=True, eq=False)
class _Frame:
    """The parts of a model that one context needs."""

    model: nn.Module
    paths: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    """The modules below the paths, as they were when the context was entered."""

    @classmethod
    def of(cls, model: nn.Module, paths: Iterable[str]) -> "_Frame":
        paths = tuple(paths)
        return cls(model, paths, tuple(part for path in paths for part in model.get_submodule(path).modules()))

    def tensors(self) -> Iterator[Tensor]:
        """The tensors below the paths; some may come twice."""
        for path in self.paths:
            yield from (tensor for _, _, tensor in tensors_below(self.model.get_submodule(path)))


class Loans:
    """The tensors of a streamed model on disk, and those of them that are in memory now.

    Args:
        source: the model, as errors name it.
        device: the device that tensors on loan are on.
        scratch: the folder for files that are removed at the end; None if no part is changed or measured.
        structures: functions that describe and rebuild formats; None if no other process reads the written parts.
    """

    def __init__(
        self, source: str, device: torch.device, scratch: Path | None = None, structures: Structures | None = None
    ) -> None:
        self._scratch, self.structures = scratch, structures
        self.stored = StoredTensors(source, device)
        self._step: str | None = None
        self.paths: tuple[str, ...] = ()
        self.finished: Mapping[str, Mapping[str, Any]] | None = None
        """The parts that an earlier run of the same step wrote, with their records; None if the step starts anew."""
        # By the path of a part, what is written with it.
        self._records: dict[str, dict[str, Any]] = {}
        # By the id of the placeholder, each with the version that it was read or written in.
        self._lent: dict[int, tuple[Tensor, int]] = {}
        # For each model, the placeholder to put back in place of a tensor, by the id of that tensor.
        self._returns: dict[int, dict[int, Tensor]] = {}
        self._frames: list[_Frame] = []

    @property
    def scratch(self) -> Path:
        """The folder for files that are removed at the end.

        Raises:
            UserError: none was given.
        """
        if self._scratch is None:
            raise UserError(
                f"The streamed model '{self.stored.source}' has no scratch folder; give one to load_streamed."
            )
        return self._scratch

    def begin(self, step: str) -> None:
        """Begin a step, whose files are in a folder of their own."""
        root = self.scratch if self._step is None else self.scratch.parent
        self._scratch, self._step, self.finished = root / step, step, None

    def branch(self, name: str) -> "Loans":
        """The loans of a copy of the model: the same tensors on disk, and a scratch folder of its own.

        Args:
            name: the path of that folder in the scratch folder of the model.
        """
        branch = Loans(self.stored.source, self.stored.device, self.scratch / name, self.structures)
        branch.stored, branch.paths = self.stored, self.paths
        return branch

    def record(self, path: str, entries: Mapping[str, Any]) -> None:
        """Add entries to the record of a part, which is written with the part.

        Args:
            path: the path of the part.
            entries: JSON values.
        """
        self._records.setdefault(path, {}).update(entries)

    def separate(self, model: nn.Module) -> None:
        """Give a copy of a streamed model placeholders of its own, so that it can be changed in place.

        Otherwise a tensor that is on loan to both models is one tensor.

        Args:
            model: the copy, no part of which is on loan.
        """
        found = self.stored.find(tensor for _, _, tensor in tensors_below(model))
        own = {key: replace(origin, placeholder=to_placeholder(origin.placeholder)) for key, origin in found.items()}
        self.stored.register(own.values())
        substitute(model, {key: origin.placeholder for key, origin in own.items()})

    def fill(self, model: PreTrainedModel, reader: TensorReader, names: Collection[str], paths: Iterable[str]) -> None:
        """Read the tensors of a model on the meta device that are not lent, and register all others.

        Args:
            model: the model, changed in place.
            reader: the files.
            names: the names of the tensors in them.
            paths: paths of the modules whose tensors are lent.

        Raises:
            UserError: tensors cannot be read, or are not finite.
        """
        self.paths = tuple(paths)
        lent = _ids([_Frame.of(model, self.paths)])
        found = find_tensors(model, names, packed_layers(model))
        origins = [Origin(tensor, reader, name, layer) for tensor, name, layer in found]
        self.stored.register(origin for origin in origins if id(origin.placeholder) in lent)
        substitute(model, self.stored.fetch([origin for origin in origins if id(origin.placeholder) not in lent]))

    @contextmanager
    def lend(self, model: nn.Module, paths: Collection[str]) -> Iterator[None]:
        """A context in which the tensors below some paths have their values.

        Args:
            model: a streamed model, or a copy of one that shares its placeholders.
            paths: paths of modules; "" is the whole model.

        Raises:
            UserError: the tensors cannot be read, or are not finite.
        """
        frame = _Frame.of(model, paths)
        wanted = self.stored.find(frame.tensors())
        fetched = self.stored.fetch([origin for key, origin in wanted.items() if key not in self._lent])
        self._lent |= {key: (tensor, tensor._version) for key, tensor in fetched.items()}
        del fetched
        substitute(model, {key: self._lent[key][0] for key in wanted})
        returns = self._returns.setdefault(id(model), {})
        returns |= {id(self._lent[key][0]): origin.placeholder for key, origin in wanted.items()}
        self._frames.append(frame)
        try:
            yield
            empty_replaced(model, frame.modules)
        except BaseException:
            self._frames.remove(frame)
            self._take_back(model)
            raise
        self._frames.remove(frame)
        changed = self._take_back(model)
        assert not changed, f"tensors of {frame.paths} were changed in place and not written back"

    def release_replaced(self, model: nn.Module) -> None:
        """Free the memory of tensors on loan whose layers were replaced.

        Args:
            model: a streamed model.
        """
        for frame in self._frames:
            if frame.model is model:
                empty_replaced(model, frame.modules)
        if id(model) in self._returns:
            self._take_back(model)
        release_freed_memory()

    def write_back(self, model: PreTrainedModel, path: str, dtype: torch.dtype) -> None:
        """Write the tensors of a part to its file, as they are now; later loans read that file.

        Args:
            model: a streamed model.
            path: the path of the part, whose tensors are in memory.
            dtype: the dtype in which tensors are stored, unless it would round them.

        Raises:
            UserError: the file cannot be written.
        """
        structure = None if self.structures is None else self.structures.describe(model, path)
        record = self._records.pop(path, None)
        # Of several processes, the first one writes, and all read what it has written.
        reader = on_rank_zero(write_part)(model, path, part_file(self.scratch, path), dtype, structure, record)
        returns = self._returns.setdefault(id(model), {})
        lendable = _ids([_Frame.of(model, self.paths_in(model))])
        layers = packed_layers(model.get_submodule(path), path)
        for tensor, name, layer in find_tensors(model, reader.dtypes, layers):
            if id(tensor) in lendable:
                placeholder = returns[id(tensor)] = to_placeholder(tensor)
                self.stored.register([Origin(placeholder, reader, name, layer)])
                self._lent[id(placeholder)] = (tensor, tensor._version)
        self._take_back(model)
        release_freed_memory()

    def restore(self, model: PreTrainedModel, path: str) -> bool:
        """Give a part the formats and tensors of its file, which another process may have written.

        Args:
            model: a streamed model, whose part is not on loan.
            path: the path of the part.

        Returns:
            Whether there is a file; if not, nothing is changed.

        Raises:
            UserError: the file is damaged, or does not fit the model.
        """
        file = part_file(self.scratch, path)
        if not file.is_file():
            return False
        assert not self._frames, "a part is restored before any part is lent"
        assert self.structures is not None, "load_streamed was given no functions that rebuild formats"
        shapes, structure = read_header(file)
        with report_misfit(file):
            self.structures.rebuild(model, path, structure)
            self.structures.unpack(model)
            layers = packed_layers(model.get_submodule(path), path)
            found = find_tensors(model, shapes, layers)
            stored = {name: tensor for layer in layers for name, tensor in layer.stored.items()}
            stored |= {name: tensor for tensor, name, layer in found if layer is None}
            reader = PartReader(file, {name: tensor.dtype for name, tensor in stored.items()})
            check_shapes(shapes, {name: tuple(tensor.shape) for name, tensor in stored.items()})
        lendable = _ids([_Frame.of(model, self.paths_in(model))])
        origins = {id(tensor): Origin(to_placeholder(tensor), reader, name, layer) for tensor, name, layer in found}
        for placeholder in (origin.placeholder for origin in origins.values()):
            # As in a model that was just loaded.
            placeholder.requires_grad_(isinstance(placeholder, nn.Parameter) and placeholder.is_floating_point())
        self.stored.register(origin for key, origin in origins.items() if key in lendable)
        substitute(model, {key: origin.placeholder for key, origin in origins.items()})
        substitute(model, self.stored.fetch([origin for key, origin in origins.items() if key not in lendable]))
        return True

    def paths_in(self, model: nn.Module) -> tuple[str, ...]:
        """The paths of the modules of `model` whose tensors are lent; a step may have dropped some blocks."""
        return tuple(path for path in self.paths if has_module(model, path))

    def _take_back(self, model: nn.Module) -> bool:
        """Put the placeholders back in a model, in place of all tensors that no context needs there any more.

        Returns:
            Whether one of these tensors was changed in place, a change that is lost.
        """
        needed_here = _ids(frame for frame in self._frames if frame.model is model)
        returns = self._returns[id(model)]
        released = {key: placeholder for key, placeholder in returns.items() if key not in needed_here}
        self._returns[id(model)] = {key: returns[key] for key in returns.keys() - released.keys()}
        present = substitute(model, released)
        versions = {key: self._lent[id(placeholder)] for key, placeholder in released.items()}
        needed = _ids(self._frames)
        self._lent = {key: lent for key, lent in self._lent.items() if id(lent[0]) in needed}
        return any(key in present and tensor._version != version for key, (tensor, version) in versions.items())


def _ids(frames: Iterable[_Frame]) -> set[int]:
    return {id(tensor) for frame in frames for tensor in frame.tensors()}
