"""The tensors of a streamed model that are on disk, by their placeholders."""

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from laconic.model.loans_origins import Origin, TensorReader, like
from laconic.model.loans_rows import CHUNK
from laconic.numerics.moments import check_finite


class StoredTensors:
    """Reads tensors of a streamed model, and checks that they are finite.

    Args:
        source: the model, as errors name it.
        device: the device that tensors are read to.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self.source, self.device = source, device
        # By the id of the placeholder, which the origin keeps alive.
        self._origins: dict[int, Origin] = {}

    @property
    def placeholders(self) -> dict[int, object]:
        """Every placeholder by its id: a memo for `copy.deepcopy`, so that a copy of the model can be streamed too."""
        return {key: origin.placeholder for key, origin in self._origins.items()}

    def register(self, origins: Iterable[Origin]) -> None:
        """Add tensors."""
        self._origins |= {id(origin.placeholder): origin for origin in origins}

    def find(self, tensors: Iterable[Tensor]) -> dict[int, Origin]:
        """The origins of those tensors that are placeholders, by the id of the placeholder."""
        return {id(tensor): self._origins[id(tensor)] for tensor in tensors if id(tensor) in self._origins}

    def is_plain(self, tensor: Tensor) -> bool:
        """Whether a tensor is a placeholder of one that is stored as it is, and not in a packed layer."""
        origin = self._origins.get(id(tensor))
        return origin is not None and origin.layer is None

    # A tensor that is made in inference mode has no version, by which `lend` finds changes.
    @torch.inference_mode(False)
    def fetch(self, origins: Collection[Origin]) -> dict[int, Tensor]:
        """Read tensors from disk.

        Args:
            origins: their origins, each once.

        Returns:
            The tensors by the id of the placeholder.

        Raises:
            UserError: they cannot be read, or are not finite.
        """
        by_reader: dict[TensorReader, list[Origin]] = {}
        for origin in origins:
            by_reader.setdefault(origin.reader, []).append(origin)
        fetched: dict[int, Tensor] = {}
        for reader, group in by_reader.items():
            layers = {origin.layer for origin in group if origin.layer is not None}
            plain = [origin.name for origin in group if origin.layer is None]
            tensors = reader.read([*plain, *(name for layer in layers for name in layer.stored)])
            for name, tensor in tensors.items():
                for chunk in tensor.flatten().split(CHUNK):
                    self._check(chunk, name)
            unpacked = {layer: layer.unpack(tensors) for layer in layers}
            for origin in group:
                found = (tensors if origin.layer is None else unpacked[origin.layer])[origin.name]
                fetched[id(origin.placeholder)] = like(found.to(self.device), origin.placeholder)
        return fetched

    def read_chunks(self, tensor: Tensor) -> Iterator[Tensor]:
        """The values of a tensor of a streamed model in consecutive chunks, so that it need not be in memory.

        Args:
            tensor: a tensor in memory, or a placeholder. A layer that is packed on disk must be on loan.

        Yields:
            Chunks on the CPU.

        Raises:
            UserError: the tensor cannot be read, or is not finite.
        """
        origin = self._origins.get(id(tensor))
        if origin is None:
            yield from (chunk.cpu() for chunk in tensor.detach().flatten().split(CHUNK))
            return
        assert origin.layer is None, "a packed layer is on loan while its tensors are read"
        for chunk in origin.reader.read_chunks(origin.name):
            self._check(chunk, origin.name)
            yield chunk

    def read_rows(self, matrix: Tensor, numbers: Tensor) -> Tensor:
        """Some rows of a matrix of a streamed model.

        Args:
            matrix: its placeholder (`is_plain`).
            numbers: the numbers of the rows.

        Returns:
            The rows on the device of the model.

        Raises:
            UserError: the rows cannot be read, or are not finite.
        """
        origin = self._origins[id(matrix)]
        rows = origin.reader.read_rows(origin.name, numbers.tolist())
        self._check(rows, origin.name)
        return like(rows.to(self.device), matrix)

    def _check(self, tensor: Tensor, name: str) -> None:
        check_finite(
            tensor, f"The model '{self.source}' has NaN or infinite values in '{name}'; use a sound checkpoint."
        )
