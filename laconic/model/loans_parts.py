"""Parts of a streamed model that were changed: one safetensors file each, in the scratch folder of the model.

A part has its tensors under their names in the model, in the form in which a saved model has them. Its metadata has
the structure of the part, so that another process can rebuild its formats.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.files import replacing, report_unwritable
from laconic.model.loans_rows import read_chunks, read_rows
from laconic.model.stock import MODEL_ERRORS

STRUCTURE, RECORD = "structure", "record"
"""The keys of the structure and of the record in the metadata."""
Structure = Mapping[str, Mapping[str, Any]]


class Structures(Protocol):
    """Functions that describe and rebuild the formats of a model; `laconic.store.structure` has them."""

    def describe(self, model: PreTrainedModel, path: str) -> Structure:
        """The structure of the part at `path`: one entry for each module that its class does not build."""
        ...

    def rebuild(self, model: PreTrainedModel, path: str, structure: Structure) -> None:
        """Insert the formats of a structure that the part at `path` does not have, on the meta device and packed."""
        ...

    def unpack(self, model: PreTrainedModel) -> None:
        """Give packed layers on the meta device the form that they compute with, in place."""
        ...


class PartReader:
    """The tensors in the file of a part.

    Args:
        file: the file.
        dtypes: the dtype of each tensor in memory, by name.
    """

    def __init__(self, file: Path, dtypes: Mapping[str, torch.dtype]) -> None:
        self.file, self.dtypes = file, dict(dtypes)
        self._identity = _identify(file)

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read tensors; see `TensorReader`."""
        with self._opened() as tensors:
            return {name: tensors.get_tensor(name).to(self.dtypes[name]) for name in names}

    def read_chunks(self, name: str) -> Iterator[Tensor]:
        """Read a tensor in chunks; see `TensorReader`."""
        with self._opened() as tensors:
            for chunk in read_chunks(self.file, name, tensors.get_slice(name).get_shape()):
                yield chunk.to(self.dtypes[name])

    def read_rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Read rows of a matrix; see `TensorReader`."""
        with self._opened():
            return read_rows(self.file, name, numbers).to(self.dtypes[name])

    @contextmanager
    def _opened(self) -> Iterator[safe_open]:
        """The open file.

        Raises:
            UserError: it is damaged, or was replaced.
        """
        if _identify(self.file) != self._identity:
            raise UserError(f"The file '{self.file}' was replaced while it was in use; start again.")
        try:
            # Positioned reads: the pages of a mapped file would count as memory of the process.
            with safe_open(self.file, framework="pt", backend="pread") as tensors:
                yield tensors
        except (OSError, SafetensorError) as error:
            raise _damaged_error(self.file, error) from error


def part_file(scratch: Path, path: str) -> Path:
    """The file of the part at `path`; "" is the whole model."""
    return scratch / "parts" / f"{path or 'model'}.safetensors"


@torch.no_grad()
def write_part(
    model: PreTrainedModel,
    path: str,
    file: Path,
    dtype: torch.dtype,
    structure: Structure | None,
    record: Mapping[str, Any] | None = None,
) -> PartReader:
    """Write the tensors of a part, as they are now.

    Args:
        model: the model.
        path: the path of the part.
        file: the file, which is replaced at once, or stays as it was.
        dtype: the dtype in which tensors are stored; a tensor that it would round is stored as it is.
        structure: the structure of the part; None if it is not known.
        record: JSON values that say what was done to the part.

    Returns:
        The reader of the file.

    Raises:
        UserError: the file cannot be written.
    """
    state = stored_state(model, path)
    assert not any(tensor.is_meta for tensor in state.values()), f"'{path}' is written back while it is on loan"
    tensors = {name: _cast(tensor.detach(), dtype).contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", STRUCTURE: json.dumps(structure), RECORD: json.dumps(dict(record or {}))}
    with report_unwritable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, flush=True) as partial:
            save_file(tensors, partial, metadata)
    return PartReader(file, {name: tensor.dtype for name, tensor in state.items()})


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], Structure]:
    """Read the shapes of the tensors in the file of a part, by name, and its structure.

    Raises:
        UserError: the file is damaged, or does not say which formats it has.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            structure = json.loads(tensors.metadata()[STRUCTURE])
    except (OSError, SafetensorError, TypeError, LookupError, ValueError) as error:
        raise _damaged_error(file, error) from error
    if not isinstance(structure, dict):
        raise UserError(f"The file '{file}' of the scratch folder does not say which formats it has; remove it.")
    return shapes, structure


def read_records(scratch: Path) -> dict[str, Mapping[str, Any]]:
    """Read the records of all parts in a scratch folder, which say what was done to them.

    Args:
        scratch: the folder.

    Returns:
        The records by the path of the part.

    Raises:
        UserError: the file of a part is damaged.
    """
    records: dict[str, Mapping[str, Any]] = {}
    for file in sorted(part_file(scratch, "").parent.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                record = json.loads((tensors.metadata() or {}).get(RECORD, "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            raise _damaged_error(file, error) from error
        records[file.stem] = record if isinstance(record, dict) else {}
    return records


@contextmanager
def report_misfit(file: Path) -> Iterator[None]:
    """A context in which any error means that the file of a part does not fit the model."""
    try:
        yield
    except (UserError, *MODEL_ERRORS) as error:
        raise UserError(
            f"The file '{file}' of the scratch folder does not fit the model: {reason_of(error)}; remove it."
        ) from error


def check_shapes(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has the tensors that are expected, and no others.

    Raises:
        ValueError: a tensor is missing or left over, or has another shape.
    """
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ValueError(f"'{name}' has the shape {shapes.get(name)} in place of {expected.get(name)}")


def stored_state(model: PreTrainedModel, path: str) -> dict[str, Tensor]:
    """The tensors of a part as a saved model has them, by their names in the model; tied ones under the first name."""
    module = model.get_submodule(path)
    repeated: list[str] = []
    seen: set[int] = set()
    for name, part in module.named_modules(prefix=path, remove_duplicate=False):
        if id(part) in seen:
            repeated.append(f"{name}.")
        seen.add(id(part))
    state = module.state_dict(prefix=f"{path}." if path else "", keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items()) if not name.startswith(tuple(repeated))}
    kept = set(first.values())
    return {name: tensor for name, tensor in state.items() if name in kept}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    return rounded if torch.equal(rounded.to(tensor.dtype), tensor) else tensor


def _identify(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise _damaged_error(file, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _damaged_error(file: Path, error: Exception) -> UserError:
    return UserError(f"The file '{file}' of the scratch folder cannot be read: {reason_of(error)}; remove it.")
