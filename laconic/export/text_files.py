"""The files beside an exported model that writes text: configurations, and what OpenVINO GenAI and ONNX GenAI read.

`config.json` and `generation_config.json` are those of transformers, without weights.
"""

import copy
import json
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laconic.errors import install, reason_of
from laconic.export import genai_config
from laconic.model import LanguageModel, ModelTask
from laconic.runtime.engines import ONNX
from laconic.runtime.signature import Signature

TOKENIZERS = "openvino_tokenizers"
TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")


def write_text_files(lm: LanguageModel, folder: Path, runtime: str, signature: Signature | None) -> tuple[str, ...]:
    """Write everything that generation needs beside the graph and the tokenizer.

    Args:
        lm: the model.
        folder: the folder of the exported model.
        runtime: `ONNX` or `OPENVINO`.
        signature: the inputs and outputs of a causal model; None for an encoder-decoder.

    Returns:
        A sentence for each file that could not be written.
    """
    config = copy.deepcopy(lm.model.config)
    # A model that was made in memory does not name its class.
    config.architectures = [type(lm.model).__name__]
    config.save_pretrained(folder)
    if lm.model.generation_config is not None:
        lm.model.generation_config.save_pretrained(folder)
    return tuple(_onnx(lm, folder, signature) if runtime == ONNX else _openvino(lm, folder))


def _onnx(lm: LanguageModel, folder: Path, signature: Signature | None) -> Iterator[str]:
    if lm.task is not ModelTask.CAUSAL or signature is None:
        return
    content = genai_config.genai_config(lm, signature)
    if content is None:
        yield (
            f"There is no {genai_config.FILE}, as ONNX Runtime GenAI reads only models whose layers all have the same "
            "number of heads; ONNX Runtime itself runs the model."
        )
        return
    (folder / genai_config.FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _openvino(lm: LanguageModel, folder: Path) -> Iterator[str]:
    if lm.tokenizer is None:
        return
    if find_spec(TOKENIZERS) is None:
        yield (
            "The tokenizer was not converted for OpenVINO GenAI, as the package openvino-tokenizers is not installed: "
            f"{install('openvino-genai')}; all else reads the tokenizer of transformers in the folder."
        )
        return
    openvino: Any = import_module("openvino")
    tokenizers: Any = import_module(TOKENIZERS)
    unsupported: type[Exception] = import_module("openvino.exceptions").OVError
    try:
        models = tokenizers.convert_tokenizer(lm.tokenizer, with_detokenizer=True)
    # Apart from its own error, the converter looks up parts of a tokenizer that not all have.
    except (unsupported, RuntimeError, ValueError, LookupError) as error:
        yield f"The tokenizer was not converted for OpenVINO GenAI: {reason_of(error)}; use that of transformers."
        return
    for model, name in zip(models, TOKENIZER_FILES, strict=True):
        openvino.save_model(model, folder / name)
