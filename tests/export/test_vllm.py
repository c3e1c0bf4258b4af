"""vLLM writes what torch writes with the exported numbers. It needs the environment of benchmarks/peers/vllm_cpu.sh."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice
from laconic.export import export
from laconic.export.compressed_tensors.target import NAME
from laconic.model.loading import load
from tests.export.served_models import SCHEMES, compressed

PYTHON = os.environ.get("LACONIC_VLLM")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "vllm_greedy.py"
TOKENS = 12
PROMPTS = [[1, 2, 3, 4, 5], [7, 8, 9, 40]]
GAP = 1e-2
"""Two tokens whose logits are closer may change places, as bfloat16 sums round in another order."""

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="LACONIC_VLLM does not name the Python of an environment with vLLM"),
]
pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")


def written(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The greedy tokens after a prompt, and the gap of the two largest logits at each."""
    ids, gaps = list(prompt), []
    for _ in range(TOKENS):
        with torch.no_grad():
            best = model(torch.tensor([ids])).logits[0, -1].float().topk(2)
        ids.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt) :], gaps


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("4")])
def test_the_engine_writes_the_same_tokens(tmp_path: Path, architecture: str, scheme: str) -> None:
    lm = compressed(architecture, (SCHEMES[scheme], "blocks"), dtype=torch.bfloat16)
    export(lm, NAME, tmp_path / "out")
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    command = [str(PYTHON), str(SCRIPT), str(tmp_path / "out"), str(tmp_path / "prompts.json"), str(TOKENS)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [line.removeprefix("WRITTEN ") for line in found.stdout.splitlines() if line.startswith("WRITTEN ")]
    with pytest.warns(CheckpointNotice, match="turned into numbers"):
        model = load(str(tmp_path / "out")).model
    assert len(lines) == len(PROMPTS)
    for line, prompt in zip(lines, PROMPTS, strict=True):
        tokens = json.loads(line)["tokens"]
        expected, gaps = written(model, prompt)
        first = next((place for place, token in enumerate(expected) if token != tokens[place]), None)
        assert first is None or gaps[first] < GAP
