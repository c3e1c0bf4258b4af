"""The card beside an exported model: what it is, how it was checked, and the lines that run it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from laconic.export.agreement import Agreement
from laconic.markdown import code, plain
from laconic.model import LanguageModel
from laconic.model.embedding_modules import POOLING_MASK, SENTENCE
from laconic.runtime.extras import ONNX, OPENVINO
from laconic.runtime.portable import Layers
from laconic.runtime.signature import TARGETS

LOADING = {
    ONNX: ("import onnxruntime", 'model = onnxruntime.InferenceSession("{file}")', "model.run(None, inputs)"),
    # Without the hint it computes in bfloat16 on processors that have it.
    OPENVINO: (
        "import openvino",
        'model = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        "list(model(inputs).values())",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a card tells: `file` in the folder, for `runtime`, run with `library`."""

    file: str
    runtime: str
    library: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    layers: Mapping[str, Layers]
    agreement: Agreement


def card(lm: LanguageModel, name: str, written: Written) -> str:
    """README.md of `lm`, exported to the folder `name`."""
    return "\n".join(_lines(lm, name, written)) + "\n"


def _lines(lm: LanguageModel, name: str, written: Written) -> Iterator[str]:
    found = written.agreement
    yield f"# {plain(name)}"
    yield ""
    # Of a folder only the name: where it lay is nobody's business.
    origin = f"{code(Path(lm.source).name)}, " if lm.source else ""
    yield f"{origin}{type(lm.model).__name__}, exported by laconic for {written.library}: {written.bytes:,} bytes."
    yield ""
    yield (
        f"Inputs: {', '.join(code(one) for one in written.inputs)}, int64, any batch and length. "
        f"Outputs: {', '.join(code(one) for one in written.outputs)}, float32."
    )
    yield (
        f"Compared with the model in torch on {found.rows} rows in {found.batches} batches: outputs are off by "
        f"{found.error:.1e} of the largest at most."
    )
    if SENTENCE in written.outputs:
        yield f"{code(SENTENCE)} is the vector of a text: {plain(lm.embedding_pipeline.describe())}."
        if (prompts := lm.embedding_pipeline.describe_prompts()) is not None:
            yield f"Prompts: {plain(prompts)}. Put it before the text yourself."
        if POOLING_MASK in written.inputs:
            yield f"{code(POOLING_MASK)} is {code('attention_mask')}, with 0 at the tokens of a prompt."
    yield ""
    if written.layers:
        yield "| layers of codes | in the file as | bytes | as laconic stores them |"
        yield "|---:|---|---:|---:|"
        for kind, layers in written.layers.items():
            yield f"| {layers.count} | {kind} | {layers.bytes:,} | {layers.stored_bytes:,} |"
        yield ""
    yield from _snippet(lm, written)


def _snippet(lm: LanguageModel, written: Written) -> Iterator[str]:
    imported, loaded, ran = LOADING[written.runtime]
    yield "```python"
    yield imported
    if lm.tokenizer is not None:
        yield "from transformers import AutoTokenizer"
    yield ""
    yield loaded.format(file=written.file)
    if lm.tokenizer is not None:
        yield 'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
        yield 'inputs = dict(tokenizer(["A text."], return_tensors="np"))'
    if TARGETS in written.inputs:
        yield f'inputs["{TARGETS}"] = …  # the tokens written so far'
    yield f"outputs = {ran}"
    yield "```"
