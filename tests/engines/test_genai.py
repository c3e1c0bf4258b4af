"""OpenVINO GenAI, ONNX Runtime GenAI and optimum-intel write what torch writes. It needs benchmarks/peers/genai.sh."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.export import export
from laconic.model import LanguageModel, ModelTask
from laconic.runtime import ONNX, OPENVINO
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer
from tests.runtime.mixed import EXACT, mixed

PYTHON = os.environ.get("LACONIC_GENAI")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "genai_write.py"
TOKENS = 8
PROMPTS = [[7, 11, 5, 23, 9], [8, 4, 30]]
ENGINES = {"openvino-genai": OPENVINO, "onnx-genai": ONNX, "optimum": OPENVINO}

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="LACONIC_GENAI does not name the Python of an environment with GenAI"),
]


def written(engine: str, folder: Path, prompts: list[Any], scratch: Path) -> list[Any]:
    """The tokens that an engine writes after each prompt."""
    (scratch / "prompts.json").write_text(json.dumps(prompts))
    command = [str(PYTHON), str(SCRIPT), engine, str(folder), str(scratch / "prompts.json"), str(TOKENS)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [line.removeprefix("WRITTEN ") for line in found.stdout.splitlines() if line.startswith("WRITTEN ")]
    return [json.loads(line)["written"] for line in lines]


@torch.no_grad()
def expected(lm: LanguageModel, prompt: list[int]) -> list[int]:
    """The most likely tokens by torch, also after an end token. Encoder-decoders write by `generate`, as optimum."""
    model: Any = lm.model
    if lm.task is ModelTask.SEQ2SEQ:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": 1}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, 1:].tolist()
    tokens = list(prompt)
    for _ in range(TOKENS):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


MODELS: dict[str, Callable[[], LanguageModel]] = {
    **{name: BY_NAME[name].lm for name in ("llama", "qwen3", "gemma2", "gpt2", "t5", "bart")},
    "compressed": lambda: mixed(BY_NAME["llama"].lm(), EXACT),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of an exported model for a runtime, written when it is first needed."""

    @cache
    def folder(name: str, runtime: str) -> Path:
        place = tmp_path_factory.mktemp("exported") / f"{name}-{runtime}"
        export(MODELS[name](), runtime, place)
        return place

    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "compressed"])
def test_a_causal_model_writes_the_same_tokens(
    tmp_path: Path, folders: Callable[[str, str], Path], name: str, engine: str
) -> None:
    lm, folder = MODELS[name](), folders(name, ENGINES[engine])
    assert written(engine, folder, PROMPTS, tmp_path) == [expected(lm, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_optimum_reads_an_encoder_decoder(tmp_path: Path, folders: Callable[[str, str], Path], name: str) -> None:
    lm, folder = MODELS[name](), folders(name, OPENVINO)
    assert written("optimum", folder, PROMPTS, tmp_path) == [expected(lm, prompt) for prompt in PROMPTS]


def test_a_converted_tokenizer_reads_and_writes_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [packages] = Path(str(PYTHON)).parents[1].glob("lib/python*/site-packages")
    # Last, so that only what is missing here is taken from there.
    monkeypatch.setattr("sys.path", [*sys.path, str(packages)])
    lm = with_tokenizer("llama")
    outcome = export(lm, OPENVINO, tmp_path / "out")
    assert not outcome.model.remarks
    assert lm.tokenizer is not None
    text = "abc de"
    tokens = expected(lm, lm.tokenizer(text)["input_ids"])
    assert written("text", tmp_path / "out", [text], tmp_path) == [
        lm.tokenizer.decode(tokens, skip_special_tokens=True)
    ]
