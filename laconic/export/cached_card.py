"""Lines of the card of an exported model with a cache: how it writes text."""

from collections.abc import Iterator

from laconic.export.genai_config import FILE
from laconic.markdown import code
from laconic.model import LanguageModel, ModelTask
from laconic.runtime.engines import ONNX, OPENVINO
from laconic.runtime.written import DECODER_FILES, ENCODER_FILES, FIRST_FILE

FOLDER = "path/to/this/folder"
OPTIMUM = (
    "from optimum.intel import {kind}",
    "",
    f'model = {{kind}}.from_pretrained("{FOLDER}", ov_config={{{{"INFERENCE_PRECISION_HINT": "f32"}}}})',
    "ids = model.generate(input_ids, attention_mask=attention_mask, max_new_tokens=20)",
)
ONNX_GENAI = (
    "import onnxruntime_genai",
    "",
    f'model = onnxruntime_genai.Model("{FOLDER}")',
    "settings = onnxruntime_genai.GeneratorParams(model)",
    "settings.set_search_options(max_length=100)",
    "generator = onnxruntime_genai.Generator(model, settings)",
    "generator.append_tokens(tokens)",
    "while not generator.is_done():",
    "    generator.generate_next_token()",
    "tokens = generator.get_sequence(0)",
)


def cached_lines(lm: LanguageModel, runtime: str) -> Iterator[str]:
    """A description of the files, with an example of their use.

    Args:
        lm: the model.
        runtime: `ONNX` or `OPENVINO`.
    """
    is_causal = lm.task is ModelTask.CAUSAL
    if runtime == OPENVINO:
        reader = "optimum-intel and OpenVINO GenAI read" if is_causal else "optimum-intel reads"
        yield f"The model keeps keys and values of earlier tokens as states. {reader} this folder."
        kind = "OVModelForCausalLM" if is_causal else "OVModelForSeq2SeqLM"
        yield from _fenced(line.format(kind=kind) for line in OPTIMUM)
    elif is_causal:
        yield (
            "Keys and values of earlier tokens are inputs and outputs. ONNX Runtime GenAI reads this folder, if it has "
            f"the file {code(FILE)}."
        )
        yield from _fenced(ONNX_GENAI)
    else:
        yield (
            f"{code(ENCODER_FILES[ONNX])} reads the source, {code(FIRST_FILE)} the first token of the target, and "
            f"{code(DECODER_FILES[ONNX])} each further one. Keys and values of earlier tokens are inputs and outputs."
        )


def _fenced(lines: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    yield ""
    yield "```python"
    yield from lines
    yield "```"
