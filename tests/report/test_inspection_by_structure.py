"""Reports on models that laconic knows only by their structure: figures, and sentences on what is missing."""

from pathlib import Path

import pytest
import transformers as hf

from laconic.cli.main import status
from tests.odd import saved
from tests.tiny_models import VOCABULARY, WIDTH

SMALLEST = {"vocab_size": VOCABULARY}
MODELS = {
    # Blocks in lists of lists, of which the configuration gives no number.
    "funnel": lambda: hf.FunnelForMaskedLM(
        hf.FunnelConfig(**SMALLEST, d_model=WIDTH, n_head=4, d_head=8, d_inner=48, block_sizes=[1, 1])
    ),
    # Blocks that give a list.
    "openai-gpt": lambda: hf.OpenAIGPTLMHeadModel(
        hf.OpenAIGPTConfig(**SMALLEST, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=40)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(**SMALLEST, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_inspect_writes_its_page(name: str, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / name, MODELS[name]())
    assert status(["inspect", str(folder), "--data", str(texts), "-o", str(tmp_path / "seen")]) == 0
    said = capsys.readouterr()
    assert "Heads were not compared" in said.out
    page = (tmp_path / "seen" / "inspect.html").read_text()
    assert "Singular values of each matrix" in page and "Heads were not compared" in page
    assert said.err.count("found by structure") == 1


def test_a_notice_is_one_line_in_every_verb(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "mamba", MODELS["mamba"]())
    # transformers shows a bar while it saves, unless an earlier test has silenced it.
    capsys.readouterr()
    assert status(["evaluate", str(folder), "--tasks", f"perplexity:{texts}", "--batch", "1", "--length", "4"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The architecture 'mamba' has no entry")


@pytest.mark.parametrize("name", ["llama", "bert-masked", "bart", "t5"])
@pytest.mark.parametrize("method", ["rtn:bits=4,group_size=8", "dynamic-int8"])
@pytest.mark.slow
def test_embeddings_of_codes_are_inspected_and_evaluated(
    name: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, small = saved(tmp_path / "model", name), str(tmp_path / "small")
    assert status(["compress", str(folder), "--method", method, "--targets", "embedding", "-o", small]) == 0
    capsys.readouterr()
    assert status(["inspect", small]) == 0
    assert "embedding" in capsys.readouterr().out
    assert status(["evaluate", small, "--against", str(folder), "--batch", "1", "--length", "4"]) == 0
