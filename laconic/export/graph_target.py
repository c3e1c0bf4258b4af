"""Export to ONNX Runtime and OpenVINO: a graph that is loaded again and compared with the model in torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from laconic.export.agreement import check_agreement
from laconic.export.cached_card import cached_lines
from laconic.export.target import ExportedModel, Target, Written, card_opening
from laconic.export.text_files import write_text_files
from laconic.markdown import code, plain
from laconic.model import LanguageModel, ModelTask
from laconic.model.embedding_modules import POOLING_MASK, SENTENCE
from laconic.progress import Track
from laconic.runtime import LoadedExport, check_runtime, serve
from laconic.runtime.cache_layout import check_cache, writes_text
from laconic.runtime.engines import ONNX, OPENVINO
from laconic.runtime.graph import exported_bytes
from laconic.runtime.signature import TARGETS
from laconic.runtime.tracing import check_traceable
from laconic.runtime.written import write_graphs

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


@dataclass(frozen=True)
class GraphTarget(Target):
    """ONNX Runtime or OpenVINO.

    Args:
        cache: whether models that write text get a cache of keys and values.
    """

    cache: bool = True

    def check_installed(self, device: str) -> None:
        check_runtime(self.name, device)

    def check_model(self, lm: LanguageModel) -> None:
        """Refuse a model without the cache that it should get; others are refused when torch traces them."""
        if self._is_cached(lm):
            check_traceable(lm)
            check_cache(lm)

    def write(self, lm: LanguageModel, folder: Path, track: Track) -> Written:
        cached = self._is_cached(lm)
        written = write_graphs(lm, self.name, folder, cached=cached)
        signature = written.signature
        agreement = check_agreement(lm, written.load(exact=True), signature, self.name, track)
        loaded = LoadedExport(written.load(), signature, exported_bytes(folder), written.layers, cached)
        model = ExportedModel(
            file=written.file,
            runtime=self.name,
            library=loaded.program.version,
            inputs=written.inputs,
            outputs=written.outputs,
            bytes=loaded.bytes,
            layers=written.layers,
            agreement=agreement,
            remarks=write_text_files(lm, folder, self.name, signature) if cached else (),
        )
        return Written(model, serve(lm, self.name, loaded).lm)

    def _is_cached(self, lm: LanguageModel) -> bool:
        return self.cache and writes_text(lm)

    def card(self, lm: LanguageModel, model: ExportedModel) -> Iterator[str]:
        yield card_opening(lm, model.library, model.bytes)
        yield ""
        has_choices = lm.task is ModelTask.MULTIPLE_CHOICE
        sizes = "batch size, number of choices and length" if has_choices else "batch size and length"
        yield (
            f"Inputs: {', '.join(map(code, model.inputs))}, int64, any {sizes}. "
            f"Outputs: {', '.join(map(code, model.outputs))}, float32."
        )
        agreement = model.agreement
        yield (
            f"Compared with the model in torch on {agreement.rows} rows in {agreement.batches} batches: outputs differ "
            f"by at most {agreement.error:.1e} of the largest output."
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
        if self._is_cached(lm):
            yield from cached_lines(lm, self.name)
            return
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


class OnnxTarget(GraphTarget):
    """ONNX Runtime."""

    name = ONNX


class OpenVinoTarget(GraphTarget):
    """OpenVINO."""

    name = OPENVINO
