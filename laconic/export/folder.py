"""Export a model to a folder with the exported model, its tokenizer and a model card.

The exported model is loaded again and compared with the model in torch. Without agreement, no folder is written.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laconic.errors import UserError, unknown
from laconic.evaluate import Evaluation, evaluate
from laconic.evaluate.paired import SIGNIFICANT
from laconic.export.agreement import Agreement, check_agreement
from laconic.files import expand_user
from laconic.markdown import code, plain
from laconic.model import LanguageModel, ModelTask
from laconic.model.embedding_modules import POOLING_MASK, SENTENCE
from laconic.progress import Track, silent
from laconic.runtime import LoadedExport, check_runtime, serve
from laconic.runtime.engines import COMPILE, EAGER, ONNX, OPENVINO, RUNTIMES, load_program
from laconic.runtime.graph import build_graph, exported_bytes, write_model
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.signature import TARGETS
from laconic.store.atomic import new_folder
from laconic.store.folder import CARD, save_tokenizers

LARGEST_LOSS = 0.01
"""The largest accepted significant change of a metric, relative to the metric."""
SNIPPETS = {
    ONNX: ("import onnxruntime", 'model = onnxruntime.InferenceSession("{file}")', "model.run(None, inputs)"),
    # Without the hint OpenVINO computes in bfloat16 on processors that have it.
    OPENVINO: (
        "import openvino",
        'model = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        "list(model(inputs).values())",
    ),
}
"""For each runtime, lines of code for the card: the import, loading the model, and the call."""
TOKENIZED = {
    ModelTask.QUESTION_ANSWERING: ('inputs = dict(tokenizer(["A question?"], ["Its context."], return_tensors="np"))',),
    ModelTask.MULTIPLE_CHOICE: (
        'rows = tokenizer(["A text."] * 2, ["A choice.", "Another one."], padding=True, return_tensors="np")',
        "inputs = {name: choices[None] for name, choices in rows.items()}",
    ),
}
"""Lines of code for the card that make the inputs, by the task of the model; other tasks read a text."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """The description of an exported model, for its card.

    Args:
        file: the name of the file that the runtime loads.
        runtime: `onnx` or `openvino`.
        library: name and version of the library that it was checked with.
        inputs: names of its inputs.
        outputs: names of its outputs.
        bytes: the size of graph and weights.
        layers: how quantized layers were exported, by label.
        agreement: how close its outputs are to those of the model in torch.
    """

    file: str
    runtime: str
    library: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    layers: Mapping[str, ExportedLayers]
    agreement: Agreement


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """The result of an export.

    Args:
        output: the folder.
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


def check_target(runtime: str, device: str = "cpu") -> None:
    """Check that models can be exported to a runtime on this machine.

    Args:
        runtime: the value of `--to`.
        device: the type of the device that the model is on.

    Raises:
        UserError: the runtime is unknown or a runtime of torch, or its libraries are missing.

    Example:
        >>> check_target("eager")
        Traceback (most recent call last):
        laconic.errors.UserError: A model is exported to onnx or openvino; 'eager' is torch's, ...
    """
    targets = [name for name in RUNTIMES if name not in (EAGER, COMPILE)]
    if runtime in (EAGER, COMPILE):
        raise UserError(
            f"A model is exported to {' or '.join(targets)}; '{runtime}' is torch's, and runs the model as it is saved."
        )
    if runtime not in targets:
        raise unknown("target", runtime, targets, "`laconic export` has")
    check_runtime(runtime, device)


def export(
    lm: LanguageModel,
    runtime: str,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    track: Track = silent,
) -> ExportOutcome:
    """Export a model to another runtime, and compare it with torch on random tokens, on text and on tasks.

    Args:
        lm: the model; it is not changed.
        runtime: `onnx` or `openvino`.
        output: the new folder.
        tasks: names of tasks on which the exported model must not be worse than the model in torch.
        limit: the largest number of rows of each task; None for all.
        track: reports progress.

    Raises:
        UserError: the folder exists, a library is missing, the model cannot be exported, or the exported model has
            different outputs or is worse on a task. No folder is left then.
    """
    start = time.perf_counter()
    check_target(runtime, lm.device.type)
    with new_folder(output) as partial:
        graph = build_graph(lm, runtime)
        file = write_model(lm, graph, runtime, partial)
        agreement = check_agreement(lm, load_program(runtime, file, exact=True), graph.signature, runtime, track)
        program = load_program(runtime, file)
        loaded = LoadedExport(program, graph.signature, exported_bytes(partial), graph.layers)
        quality = _evaluate(lm, runtime, loaded, tasks, limit, track) if tasks else None
        model = ExportedModel(
            file=file.name,
            runtime=runtime,
            library=program.version,
            inputs=graph.signature.inputs,
            outputs=graph.signature.outputs,
            bytes=loaded.bytes,
            layers=graph.layers,
            agreement=agreement,
        )
        save_tokenizers(lm, partial)
        card = "\n".join(_card(lm, Path(output).name, model)) + "\n"
        (partial / CARD).write_text(card, encoding="utf-8")
    return ExportOutcome(
        output=expand_user(output),
        model=model,
        stored_bytes=lm.size()[1],
        quality=quality,
        seconds=time.perf_counter() - start,
    )


def _evaluate(
    lm: LanguageModel, runtime: str, loaded: LoadedExport, tasks: Sequence[str], limit: int | None, track: Track
) -> Evaluation:
    served = serve(lm, runtime, loaded).lm
    evaluation = evaluate(served, tasks, limit=limit, against=lm, cost=False, track=track)
    assert evaluation.original is not None and evaluation.difference is not None
    for task, metrics in evaluation.difference.items():
        for metric, change in metrics.items():
            original = evaluation.original[task][metric].value
            if change.p < SIGNIFICANT and abs(change.value) > LARGEST_LOSS * abs(original):
                raise UserError(
                    f"The model for {runtime} has a {metric} of {evaluation.results[task][metric].value:.4f} on "
                    f"'{task}', where the model in torch has {original:.4f}; nothing was written."
                )
    return evaluation


def _card(lm: LanguageModel, name: str, model: ExportedModel) -> Iterator[str]:
    """The lines of README.md in the folder `name`."""
    yield f"# {plain(name)}"
    yield ""
    # Only the name of a local folder is shown, as its path is private.
    origin = f"{code(Path(lm.source).name)}, " if lm.source else ""
    values = asdict(model)
    yield f"{origin}{type(lm.model).__name__}, exported by laconic for {values['library']}: {values['bytes']:,} bytes."
    yield ""
    has_choices = lm.task is ModelTask.MULTIPLE_CHOICE
    sizes = "batch size, number of choices and length" if has_choices else "batch size and length"
    yield (
        f"Inputs: {', '.join(map(code, model.inputs))}, int64, any {sizes}. "
        f"Outputs: {', '.join(map(code, model.outputs))}, float32."
    )
    agreement = model.agreement
    yield (
        f"Compared with the model in torch on {agreement.rows} rows in {agreement.batches} batches: outputs differ by "
        f"at most {agreement.error:.1e} of the largest output."
    )
    if SENTENCE in model.outputs:
        yield f"{code(SENTENCE)} is the vector of a text: {plain(lm.embedding_pipeline.describe())}."
        if (prompts := lm.embedding_pipeline.describe_prompts()) is not None:
            yield f"Prompts: {plain(prompts)}. Put it before the text yourself."
        if POOLING_MASK in model.inputs:
            yield f"{code(POOLING_MASK)} is {code('attention_mask')}, with 0 at the tokens of a prompt."
    yield ""
    if model.layers:
        yield "| quantized layers | in the file as | bytes | as laconic stores them |"
        yield "|---:|---|---:|---:|"
        for label, layers in model.layers.items():
            yield f"| {layers.count} | {label} | {layers.bytes:,} | {layers.stored_bytes:,} |"
        yield ""
    import_line, load_line, call = SNIPPETS[model.runtime]
    yield "```python"
    yield import_line
    if lm.tokenizer is not None:
        yield "from transformers import AutoTokenizer"
    yield ""
    yield load_line.format(file=model.file)
    if lm.tokenizer is not None:
        yield 'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
        yield from TOKENIZED.get(lm.task, ('inputs = dict(tokenizer(["A text."], return_tensors="np"))',))
    if TARGETS in model.inputs:
        yield f'inputs["{TARGETS}"] = …  # the tokens written so far'
    yield f"outputs = {call}"
    yield "```"
