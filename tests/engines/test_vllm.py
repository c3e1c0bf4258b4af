"""vLLM writes what torch writes with the exported numbers. It needs the environment of benchmarks/peers/vllm_cpu.sh."""

import json
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice, Notice
from laconic.export import export
from laconic.export.compressed_tensors.target import NAME as COMPRESSED
from laconic.export.gptq.target import NAME as GPTQ
from laconic.methods import Int8, Rtn
from laconic.model.loading import load
from tests.export.served_models import SCHEMES, compressed

PYTHON = os.environ.get("LACONIC_VLLM")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "vllm_greedy.py"
TOKENS = 12
PROMPTS = [[1, 2, 3, 4, 5], [7, 8, 9, 40]]
GAP = 0.25
"""vLLM computes in bfloat16, and torch here in float32 with the same weights: gaps between the logits of two tokens may
change by this much on average, and tokens that are closer may change places. Logits are about 6, so it is 4 %."""
ROUNDED_GAP = 0.5
"""The same where inputs are rounded to 8 bits, which torch does not do here."""

Case = tuple[str, str, tuple[tuple[Any, str], ...], float]
"""A model, the target, the methods with the layers that they compress, and the largest mean change of a gap."""
CASES: dict[str, Case] = {
    **{
        f"{model}, {scheme}": (model, COMPRESSED, ((SCHEMES[scheme], "blocks"),), GAP)
        for model in ("llama", "qwen2", "qwen3", "phi3")
        for scheme in SCHEMES
        if scheme.startswith("4")
    },
    "llama, W8A8": ("llama", COMPRESSED, ((Int8(), "blocks"),), ROUNDED_GAP),
    "qwen3, mixed": (
        "qwen3",
        COMPRESSED,
        ((Int8(), "attention"), (Rtn(bits=4, group_size=32, symmetric=True), "ffn")),
        ROUNDED_GAP,
    ),
    # On a CPU vLLM computes quantized experts only with AMX instructions.
    "mixtral, 4 bits in attention": ("mixtral", COMPRESSED, ((SCHEMES["4 bits, groups of 32"], "attention"),), GAP),
    "qwen3-moe, 4 bits in attention": ("qwen3-moe", COMPRESSED, ((SCHEMES["4 bits, rows"], "attention"),), GAP),
    "olmoe, W8A8 in attention": ("olmoe", COMPRESSED, ((Int8(), "attention"),), ROUNDED_GAP),
    "llama, gptq": ("llama", GPTQ, ((Rtn(bits=4, group_size=32, symmetric=True), "blocks"),), GAP),
    # vLLM on a CPU reads only symmetric codes of 4 bits in this format.
    "qwen2, gptq": ("qwen2", GPTQ, ((Rtn(bits=4, group_size=128, symmetric=True), "blocks"),), GAP),
}

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="LACONIC_VLLM does not name the Python of an environment with vLLM"),
]
pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, list[dict[str, Any]]]:
    """The folders of the models of all selected tests, and what vLLM wrote with them in one process."""
    root = tmp_path_factory.mktemp("served")
    folders = {}
    selected = {item.name for item in request.session.items}
    for number, (name, (model, target, methods, _)) in enumerate(CASES.items()):
        if not any(f"[{name}]" in item for item in selected):
            continue
        folders[name] = root / str(number)
        with warnings.catch_warnings():
            # transformers does not read experts without codes beside quantized layers, and vLLM does.
            warnings.filterwarnings("ignore", "The experts .* are not quantized", Notice)
            export(compressed(model, *methods, dtype=torch.bfloat16), target, folders[name])
    (root / "prompts.json").write_text(json.dumps(PROMPTS))
    command = [str(PYTHON), str(SCRIPT), str(root / "prompts.json"), str(TOKENS), *map(str, folders.values())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [line.partition(" ") for line in found.stdout.splitlines() if line.startswith(("WRITTEN ", "FAILED "))]
    return root, [json.loads(text) for _, _, text in lines]


def written(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The greedy tokens after a prompt, and the gap of the two largest logits at each."""
    ids, gaps = list(prompt), []
    for _ in range(TOKENS):
        with torch.no_grad():
            best = model(torch.tensor([ids])).logits[0, -1].float().topk(2)
        ids.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt) :], gaps


@pytest.mark.parametrize("name", CASES)
def test_the_engine_writes_the_same_tokens(served: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    root, answers = served
    folder = str(root / str(list(CASES).index(name)))
    lines = [answer for answer in answers if answer["model"] == folder]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNotice)
        model = load(folder).model
    assert [line.get("error") for line in lines] == [None] * len(PROMPTS)
    for line, prompt in zip(lines, PROMPTS, strict=True):
        expected, gaps = written(model, prompt)
        largest = CASES[name][3]
        first = next((place for place, token in enumerate(expected) if token != line["tokens"][place]), None)
        assert first is None or gaps[first] < largest
        # Up to there the two read the same tokens.
        same = TOKENS if first is None else first + 1
        changes = torch.tensor(gaps[:same]) - torch.tensor(line["gaps"][:same])
        assert changes.abs().mean() < largest
