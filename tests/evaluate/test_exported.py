"""Encoder-decoders that were exported are evaluated in their runtime as in torch, and write there what they do."""

import json
from pathlib import Path

import pytest

import laconic
from laconic.cli.main import status
from laconic.evaluate import evaluate
from laconic.export import export
from laconic.model import LanguageModel
from laconic.store import save
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

SOURCES = ("tale", "of two cities", "it was", "the best", "of times", "wisdom")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """A task of sources, and of targets that a random model does not write."""
    lines = (json.dumps({"source": source, "target": source[::-1]}) for source in SOURCES)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return f"seq2seq:{tmp_path / 'pairs.jsonl'}"


def models(folder: Path, runtime: str, name: str) -> tuple[LanguageModel, LanguageModel]:
    """A compressed model, exported, and its original, saved."""
    small, original = compress_everything(with_tokenizer(name), rank=4), with_tokenizer(name)
    export(small, runtime, folder / "served")
    save(original, folder / "original")
    return small, original


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "name"), [("onnx", "t5"), ("openvino", "bart-untied")])
def test_an_exported_folder_is_evaluated_beside_its_original(
    pairs: str, tmp_path: Path, runtime: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small, original = models(tmp_path, runtime, name)
    expected = evaluate(small, [pairs], against=original, cost=False)
    command = ["evaluate", str(tmp_path / "served"), "--runtime", runtime, "--tasks", pairs, "--length", "8"]
    assert status([*command, "--against", str(tmp_path / "original"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for metric, figure in expected.results[pairs].items():
        assert found["results"][pairs][metric]["value"] == pytest.approx(figure.value, rel=1e-6)
    assert expected.fidelity is not None
    assert found["fidelity"]["kl"] == pytest.approx(expected.fidelity.kl, rel=1e-3)
    (timing,) = found["original"]["cost"]["generation"]
    assert timing["decode_tokens_per_second"] > 0 and found["cost"]["bytes"] < found["original"]["cost"]["bytes"]
    settings = found["settings"][pairs]
    assert settings["runtime"] == runtime and settings["library"].startswith(("onnxruntime", "openvino"))


@pytest.mark.slow
def test_without_tasks_the_cost_is_measured(tmp_path: Path) -> None:
    export(with_tokenizer("t5"), "onnx", tmp_path / "served")
    cost = laconic.evaluate(tmp_path / "served", runtime="onnx", length=8).to_dict()["cost"]
    assert cost["generation"][0]["prompt"] == 8 and cost["generation"][0]["decode_tokens_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "perplexity:builtin:pydoc"], "needs a causal model; 'served' is a seq2seq model"),
        (["--batch", "4"], "--batch must be 1 in the runtime 'onnx'"),
        (["--against", "llama"], "'onnx' is measured with seq2seq models; "),
    ],
)
def test_what_cannot_be_measured_is_named(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    export(with_tokenizer("t5"), "onnx", tmp_path / "served")
    save(with_tokenizer("llama"), tmp_path / "llama")
    capsys.readouterr()
    assert status(["evaluate", "served", "--runtime", "onnx", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1
