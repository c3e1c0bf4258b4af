"""The solutions of the layers of a streamed model, in files of its scratch folder, one for each part.

A plan may need the decomposition of every layer before the first layer is replaced. A decomposition serves every size,
so the pass that replaces the layers reads it, and measures nothing again. A file is written once its part is finished.
A run that was killed before it had a plan therefore goes on at the part that it was at.
"""

import json
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laconic.files import replacing
from laconic.model import LanguageModel
from laconic.model.loans_parts import report_unwritable

Solutions = dict[str, tuple[Tensor, ...]]
"""The results that `LayerStats.get_or_compute` keeps for one layer, by name."""
FOLDER = "solutions"
"""The folder of the files, in the scratch folder of a streamed model."""
CONTENTS = "contents"
"""The key of the list of tensors in the metadata."""


class SolutionFiles:
    """The files of one step.

    Args:
        folder: the folder of the files; it need not exist.
        device: the device of tensors that are read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> files = SolutionFiles(Path(folder.name) / "solutions")
        >>> files.save("block", {"query": {"losses": (torch.ones(2),)}})
        >>> files.load("block", ["query"]), files.load("block", ["key"])
        ({'query': {'losses': (tensor([1., 1.]),)}}, None)
        >>> folder.cleanup()
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self._folder, self._device = folder, device

    @classmethod
    def of(cls, lm: LanguageModel) -> "SolutionFiles":
        """The files of the present step of a streamed model."""
        assert lm.loans is not None, "a model in memory keeps its solutions in memory"
        return cls(lm.loans.scratch / FOLDER, lm.device)

    def load(self, part: str, names: Collection[str]) -> dict[str, Solutions] | None:
        """Read the solutions of the layers of a part.

        Args:
            part: the path of the part.
            names: the names of the layers.

        Returns:
            The solutions by the name of the layer; None if a layer has none, or if the file is damaged.
        """
        try:
            # Positioned reads: the pages of a mapped file would count as memory of the process.
            with safe_open(self._file(part), framework="pt", backend="pread") as file:
                contents: dict[str, Any] = json.loads(file.metadata()[CONTENTS])
                tensors = {key: file.get_tensor(key) for key in contents["checksums"]}
        except (OSError, SafetensorError, ValueError, LookupError, TypeError):
            return None
        if any(_checksum(tensors[key]) != expected for key, expected in contents["checksums"].items()):
            return None
        layers = contents["layers"]
        if not set(names) <= layers.keys():
            return None
        return {
            name: {key: tuple(tensors[number].to(self._device) for number in numbers) for key, numbers in layers[name]}
            for name in names
        }

    def save(self, part: str, solutions: Mapping[str, Solutions]) -> None:
        """Write the solutions of the layers of a part, unless a layer has none.

        Args:
            part: the path of the part.
            solutions: the solutions by the name of the layer.

        Raises:
            UserError: the file cannot be written.
        """
        if not all(solutions.values()):
            return
        tensors: dict[str, Tensor] = {}
        layers: dict[str, list[tuple[str, list[str]]]] = {}
        for name, own in solutions.items():
            layers[name] = []
            for key, parts in own.items():
                numbers = [str(len(tensors) + position) for position in range(len(parts))]
                # safetensors refuses tensors that share memory.
                copies = [tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for tensor in parts]
                tensors |= dict(zip(numbers, copies, strict=True))
                layers[name].append((key, numbers))
        checksums = {number: _checksum(tensor) for number, tensor in tensors.items()}
        file = self._file(part)
        with report_unwritable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, flush=True) as partial:
                save_file(tensors, partial, {CONTENTS: json.dumps({"layers": layers, "checksums": checksums})})

    def delete(self) -> None:
        """Delete all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, part: str) -> Path:
        return self._folder / f"{part}.safetensors"


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
