"""The base class of the targets of `laconic export`, and the description of an exported model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from laconic.evaluate import Evaluation
from laconic.export.agreement import Agreement
from laconic.markdown import code
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.runtime.portable import ExportedLayers


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """The description of an exported model, for its card.

    Args:
        file: the name of the file that the runtime loads.
        runtime: the name of the target, such as `onnx`.
        library: name and version of the library that it was checked with.
        inputs: names of its inputs.
        outputs: names of its outputs.
        bytes: the size of graph and weights.
        layers: how quantized layers were exported, by label.
        agreement: how close its outputs are to those of the model in torch; without rows if only numbers were compared.
        scale_rounding: the norm of the change of a matrix's scales because they are rounded in the file, as a fraction
            of their norm; the largest of all matrices; None if the target rounds no scales.
        remarks: a sentence for each file that the folder lacks.
    """

    file: str
    runtime: str
    library: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    layers: Mapping[str, ExportedLayers]
    agreement: Agreement
    scale_rounding: float | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """The result of an export.

    Args:
        output: the folder, or the file if the output is a single one.
        model: the description of the exported model.
        stored_bytes: bytes of the weights as laconic stores them.
        quality: the results of the tasks in the runtime, compared with torch; None if there were no tasks.
        seconds: the duration of the export.
    """

    output: Path
    model: ExportedModel
    stored_bytes: int
    quality: Evaluation | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values; `laconic export --json` prints them."""
        return {
            "output": str(self.output),
            **asdict(self.model),
            "stored_bytes": self.stored_bytes,
            "quality": None if self.quality is None else self.quality.to_json(),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Written:
    """A model that a target wrote and compared with torch.

    Args:
        model: its description.
        served: the model as the target's runtime computes it, for tasks.
    """

    model: ExportedModel
    served: LanguageModel


class Target(ABC):
    """A runtime or a format that models are exported to.

    A new target is a subclass, and a line in `laconic.export.targets`.
    """

    name: ClassVar[str]
    """The value of `--to`."""
    single_file: ClassVar[str | None] = None
    """The name of the only file that a runtime needs; an output with the suffix of this name is that file alone."""

    @abstractmethod
    def check_installed(self, device: str) -> None:
        """Check that models can be written on this machine.

        Args:
            device: the type of the device that the model is on.

        Raises:
            UserError: a library is missing, or the target does not support the device.
        """

    @abstractmethod
    def check_model(self, lm: LanguageModel) -> None:
        """Check that a model can be written, as far as its structure says.

        Args:
            lm: the model, with or without weights.

        Raises:
            UserError: the target cannot hold a layer of the model.
        """

    @abstractmethod
    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        """Write a model and compare it with the model in torch; tokenizers and the card are written later.

        Args:
            lm: the model; it is not changed.
            folder: an existing folder.
            track: reports progress.

        Raises:
            UserError: the model cannot be exported, or the exported model has different outputs.
        """

    @abstractmethod
    def card(self, lm: LanguageModel, model: ExportedModel) -> Iterator[str]:
        """The lines of the model card after its title: what the folder holds, and how it is used."""


def card_opening(lm: LanguageModel, engine: str, nbytes: int) -> str:
    """The first sentence of a card.

    Args:
        lm: the model.
        engine: what reads the export.
        nbytes: the size of the export.
    """
    # Only the name of a local folder is shown, as its path is private.
    origin = f"{code(Path(lm.source).name)}, " if lm.source else ""
    return f"{origin}{type(lm.model).__name__}, exported by laconic for {engine}: {nbytes:,} bytes."


def layers_table(model: ExportedModel, layers_title: str) -> Iterator[str]:
    """The lines of a card's table of compressed layers; none if there are no such layers.

    Args:
        model: the exported model.
        layers_title: the title of the column with their number.
    """
    if not model.layers:
        return
    yield ""
    yield f"| {layers_title} | in the file as | bytes | as laconic stores them |"
    yield "|---:|---|---:|---:|"
    for label, layers in model.layers.items():
        yield f"| {layers.count} | {label} | {layers.bytes:,} | {layers.stored_bytes:,} |"
