"""`laconic.export`: write a model for another runtime, and compare it with the model in torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.api.arguments import check_kinds, to_folder, to_model_input, to_tasks
from laconic.api.results import Part, Result
from laconic.calibrate.row import tokenizer_of
from laconic.evaluate import check_tasks
from laconic.evaluate.tasks import load_corpus
from laconic.export import ExportOutcome, check_target
from laconic.export import export as export_model
from laconic.progress import Track, silent
from laconic.recipe.checks import check_label_order
from laconic.report.evaluation import evaluation_remarks, evaluation_tables
from laconic.report.exports import export_lines, export_table
from laconic.report.tables import Table
from laconic.store import check_output


@dataclass(frozen=True, repr=False, eq=False)
class ExportResult(Result):
    """A model that was written for another runtime.

    Args:
        output: the folder with the model, or the file.
        bytes: bytes of the weights in it.
        error: the largest difference from the outputs of the model in torch, as a fraction of the largest output.
        outcome: all other results of the export.

    Example:
        `laconic.export` returns it. This example builds one directly, as an export needs the libraries of the runtime.

        >>> from laconic.export.agreement import Agreement
        >>> from laconic.export.target import ExportedModel
        >>> agreement = Agreement(error=2e-6, tolerance=1e-3, rows=16, batches=4)
        >>> model = ExportedModel(
        ...     file="model.onnx", runtime="onnx", library="onnxruntime 1.23", bytes=4096, layers={},
        ...     inputs=("input_ids",), outputs=("logits",), agreement=agreement,
        ... )
        >>> outcome = ExportOutcome(output=Path("served"), model=model, stored_bytes=4000, quality=None, seconds=1.5)
        >>> result = ExportResult(outcome.output, model.bytes, agreement.error, outcome)
        >>> result.bytes, result.error, result.to_dict()["file"]
        (4096, 2e-06, 'model.onnx')
    """

    output: Path
    bytes: int
    error: float
    outcome: ExportOutcome

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic export --json` prints."""
        return self.outcome.to_json()

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each kind of quantized layer."""
        return [{"layers": kind, **layers} for kind, layers in self.to_dict()["layers"].items()]

    def _headline(self) -> str:
        """The file and its size."""
        return export_lines(self.to_dict())[0]

    def _table(self) -> Table | None:
        """The quantized layers by their operator in the file; None if there are none."""
        found = self.to_dict()
        return export_table(found) if found["layers"] else None

    def _notes(self) -> Sequence[str]:
        """Inputs, outputs, and the agreement with the model in torch."""
        return export_lines(self.to_dict())[1:]

    def parts(self) -> Iterator[Part]:
        """All lines and tables, with the quality if there are tasks."""
        found, table = self.to_dict(), self._table()
        yield from export_lines(found)
        if table is not None:
            yield "", table
        if found["quality"] is not None:
            yield from evaluation_tables(found["quality"]).items()
            yield from evaluation_remarks(found["quality"])


def export(
    model: PreTrainedModel | str | PathLike[str],
    to: str,
    output: str | PathLike[str],
    *,
    tasks: str | Sequence[str] = (),
    limit: int | None = None,
    label_order: Sequence[str | int] | None = None,
    cache: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = silent,
) -> ExportResult:
    """Write a model for another runtime, after a check that its outputs there equal those of torch.

    Args:
        model: a loaded model, or a folder or hub name.
        to: the target, such as `onnx`, `openvino` or `gguf`.
        output: new folder for the model, its tokenizer and a model card, written whole or not at all. A name that ends
            in `.gguf`, for the target `gguf`, is the file alone.
        tasks: tasks of `evaluate` on which the exported model must be as good as the model in torch.
        limit: maximum rows of each task; None for all.
        label_order: class names in the order of the model's outputs, as the tasks spell them. None for the order in the
            model's configuration.
        cache: whether a causal model or an encoder-decoder gets a cache of keys and values in ONNX Runtime and
            OpenVINO, so that it writes text. Without, its graph reads a whole prompt at every call.
        tokenizer: tokenizer of the model. None for the one in the folder that the model was loaded from.
        track: reports progress.

    Returns:
        The folder, its size, and the agreement with the model in torch.

    Raises:
        UserError: an argument has a wrong value, the libraries of the runtime are missing, the model cannot be
            exported, or its outputs differ. Nothing is written then.

    Example:
        >>> export("MODEL", to="eager", output="served")
        Traceback (most recent call last):
        laconic.errors.UserError: A model is exported to onnx, ... 'eager' is torch's, and runs ...
    """
    check_kinds(to=to, tasks=tasks, limit=limit, label_order=label_order, cache=cache, track=track)
    target = check_target(to, cache=cache)
    names = to_tasks(tasks, limit, label_order)
    model_input = to_model_input(model, tokenizer, label_order)
    folder = to_folder(output)
    check_output(folder, model_input.name)
    structure = model_input.skeleton()
    check_label_order(structure)
    target.check_model(structure)
    if names:
        tokenizer_of(structure)
    check_tasks(names, structure, compared=True, load=partial(load_corpus, limit=limit))
    with model_input.open_model(restore=False) as lm:
        target.check_installed(lm.device.type)
        outcome = export_model(lm, target, folder, tasks=names, limit=limit, track=track)
    return ExportResult(outcome.output, outcome.model.bytes, outcome.model.agreement.error, outcome)
