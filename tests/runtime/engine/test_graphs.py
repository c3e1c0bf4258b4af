"""Models that were exported to ONNX Runtime and OpenVINO predict and write there what they do in torch."""

import json
from pathlib import Path

import pytest
import torch

import laconic
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.evaluate.engine_cost import NO_CACHE
from laconic.export import check_target, export
from laconic.runtime.engine import ENGINES
from laconic.runtime.engine.graphs import GraphEngine
from laconic.store import save
from tests.architectures import BY_NAME, compress_everything
from tests.evaluate.models import with_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 7, 8]
RUNTIMES = ("onnx", "openvino")


def opened(name: str, folder: Path) -> GraphEngine:
    """The model in a folder."""
    engine = ENGINES[name]
    path = engine.find(folder)
    assert path is not None and issubclass(engine, GraphEngine)
    return engine(path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("cache", [True, False])
def test_tokens_are_those_of_torch(name: str, cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.runtime.engine.graphs.PREDICTED", 5)
    lm = with_tokenizer("llama")
    export(lm, check_target(name, cache=cache), tmp_path / "out")
    engine = opened(name, tmp_path / "out")
    with torch.no_grad():
        expected = lm.model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    for start in (1, 6, 8, len(TOKENS) - 1):
        parts = list(engine.predict(TOKENS, start))
        assert len(parts) == (len(range(0, 11, 5)) - (start - 1) // 5 if cache else 1)
        targets, sizes = torch.tensor(TOKENS[start:]), [len(part) for part in parts]
        found = torch.cat([part.nats(some) for part, some in zip(parts, targets.split(sizes), strict=True)])
        assert torch.allclose(found, -expected[start - 1 : -1].gather(1, targets[:, None])[:, 0].double(), atol=1e-4)
    assert engine.vocabulary == expected.shape[1] and engine.has_cache == cache
    whole = list(TOKENS)
    for _ in range(3):
        with torch.no_grad():
            whole.append(int(lm.model(torch.tensor([whole])).logits[0, -1].argmax()))
    # Twice: a text knows nothing of the text before it.
    for _ in range(2):
        written = engine.write(TOKENS, 3 if cache else 1)
        assert list(written.tokens) == whole[len(TOKENS) :][: len(written.tokens)]
        assert len(written.seconds) == len(written.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("kind", ["bert-base", "distilbert-masked"])
def test_other_models_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    export(BY_NAME[kind].lm(), name, tmp_path / "out")
    with pytest.raises(UserError, match="is no causal language model; evaluate the model that it was exported from"):
        opened(name, tmp_path / "out")


@pytest.mark.slow
def test_an_exported_folder_is_evaluated_beside_its_original(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, original = compress_everything(with_tokenizer("llama"), rank=4), with_tokenizer("llama")
    export(small, "openvino", tmp_path / "served")
    save(original, tmp_path / "original")
    task = f"perplexity:{texts}"
    expected = evaluate(small, [task], limit=4, against=original, cost=False)
    command = ["evaluate", str(tmp_path / "served"), "--runtime", "openvino", "--tasks", task, "--limit", "4"]
    assert status([*command, "--against", str(tmp_path / "original"), "--length", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert expected.fidelity is not None
    assert found["fidelity"]["kl"] == pytest.approx(expected.fidelity.kl, rel=1e-2)
    perplexity = expected.results[task]["perplexity"].value
    assert found["results"][task]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-3)
    (timing,) = found["original"]["cost"]["generation"]
    assert timing["decode_tokens_per_second"] > 0 and found["cost"]["bytes"] < found["original"]["cost"]["bytes"]


@pytest.mark.slow
def test_without_a_cache_only_the_prompt_is_timed(tmp_path: Path) -> None:
    export(with_tokenizer("llama"), check_target("onnx", cache=False), tmp_path / "served")
    found = laconic.evaluate(tmp_path / "served", runtime="onnx", length=8)
    cost = found.to_dict()["cost"]
    assert cost["generation"][0]["step"] is None and cost["missing"] == [NO_CACHE]
    assert NO_CACHE in str(found)


def test_files_are_found(tmp_path: Path) -> None:
    engine = ENGINES["onnx"]
    assert engine.find(tmp_path) is None and engine.find(tmp_path / "model.onnx") is None
    file = tmp_path / "model.onnx"
    file.touch()
    assert engine.find(tmp_path) == engine.find(file) == file
    assert ENGINES["openvino"].find(file) is None and engine.positions(file) is None
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 12}}))
    assert engine.positions(file) == 12


def test_there_is_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").touch()
    assert status(["serve", str(tmp_path), "--runtime", "onnx"]) == 2
    assert "laconic knows no server for the runtime 'onnx'" in capsys.readouterr().err
