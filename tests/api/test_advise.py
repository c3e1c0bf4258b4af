"""`laconic advise` measures a model in every way that a runtime computes with, and says which is fastest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import laconic
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.recipe.stored import STORED
from laconic.report.advice import Measured, advice_lines, advice_table
from laconic.runtime.engine import ENGINES
from laconic.runtime.engines import RUNTIMES

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64
}  # fmt: skip


def encoder() -> BertModel:
    return BertModel(BertConfig(vocab_size=50, **SHAPE)).eval()


def decoder() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **SHAPE)).eval()


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_every_way_is_measured(runtime: str) -> None:
    if runtime == "onnx":
        pytest.importorskip("onnxruntime")
    model = encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = laconic.advise(model, runtime, length=8)
    assert [way.label for way in result.ways] == ["as it is", *(way.label for way in STORED[runtime])]
    assert all(way.reading and way.refusal is None for way in result.ways)
    sizes = [way.bytes or 0 for way in result.ways]
    assert max(sizes[1:]) < sizes[0]
    # The model itself is as before.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_decoder_reads_and_writes() -> None:
    result = laconic.advise(decoder(), length=16)
    assert all(way.reading and way.writing for way in result.ways)
    assert {column.heading for column in advice_table(result.ways).columns} >= {"reads, tokens/s", "writes, tokens/s"}


def test_every_runtime_has_ways() -> None:
    assert STORED.keys() == {*RUNTIMES, *ENGINES}


def test_a_way_that_does_not_fit_is_told() -> None:
    ways = [
        Measured(label="as it is", bytes=100, memory_bytes=100, reading=10.0, writing=5.0),
        Measured(label="a", options="--method a", bytes=50, memory_bytes=60, reading=10.2, writing=15.0),
        Measured(label="b", options="--method b", refusal="It does not fit."),
    ]
    assert advice_lines(ways) == [
        "Reading: nothing is faster than the model as it is.",
        "Writing: a is 3.00 times as fast as the model as it is (--method a).",
        "Smallest: a, 0.50 of the bytes (--method a).",
        "Not b: It does not fit.",
    ]
    assert len(advice_table(ways).rows) == 2


def test_the_command_prints_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder().save_pretrained(tmp_path / "model")
    assert status(["advise", str(tmp_path / "model"), "--length", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ways"][0]["label"] == "as it is"
    assert found["advice"][0].startswith("Reading: ")
    assert status(["advise", str(tmp_path / "model"), "--length", "8"]) == 0
    assert "stored as" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--runtime", "onyx"], "There is no runtime 'onyx': did you mean 'onnx'?"),
        (["--batch", "0"], "--batch must be a whole number above 0; got 0."),
        (["--length", "0"], "--length must be a whole number above 0; got 0."),
        (
            ["--runtime", "vllm", "--batch", "2"],
            "--batch must be 1 in the runtime 'vllm', which is",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder().save_pretrained(tmp_path / "model")
    assert status(["advise", str(tmp_path / "model"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("counts", [{"length": (8, 16)}, {"batch": True}])
def test_one_batch_and_one_length(counts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be a whole number above 0"):
        laconic.advise(encoder(), **counts)
