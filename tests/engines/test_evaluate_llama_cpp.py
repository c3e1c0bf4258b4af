"""`laconic evaluate --runtime llama.cpp` measures a GGUF file in llama.cpp. It needs the package llama-cpp-python."""

import json
from pathlib import Path

import pytest
import torch

import laconic
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.model import LanguageModel
from laconic.runtime.engine.llama_cpp import PREDICTED, LlamaCpp
from laconic.store import save
from tests.export.gguf.models import ROWS, byte_level, exported, model
from tests.export.gguf.test_export import compressed

pytestmark = pytest.mark.engines
pytest.importorskip("gguf")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

Output = pytest.CaptureFixture[str]


def with_texts(lm: LanguageModel) -> LanguageModel:
    return LanguageModel.of(lm.model, byte_level())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A GGUF file of 4 bits, and the folder of its original."""
    small = with_texts(compressed(4, True))
    file = exported(small, tmp_path)
    save(with_texts(model("llama")), tmp_path / "original")
    small.tokenizer.save_pretrained(file.parent)
    return file, tmp_path / "original"


def test_predictions_are_those_of_torch(tmp_path: Path) -> None:
    lm = model("llama")
    engine = LlamaCpp(exported(lm, tmp_path), 64)
    tokens = torch.randint(2, ROWS, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = lm.model(tokens[None]).logits[0].log_softmax(-1)
    for start in (1, 7, 39):
        (found,) = engine.predict(tokens.tolist(), start)
        nats = -expected[start - 1 : -1].gather(1, tokens[start:, None])[:, 0]
        assert len(found) == 40 - start <= PREDICTED
        assert torch.allclose(found.nats(tokens[start:]), nats.double(), atol=1e-2)
    written = engine.write(tokens[:5].tolist(), 3)
    assert written.tokens[0] == int(expected[4].argmax())
    assert len(written.seconds) == 3 and min(written.seconds) > 0 and engine.vocabulary == ROWS
    engine.close()


def test_quality_is_that_of_torch(files: tuple[Path, Path], texts: Path) -> None:
    file, original = files
    task = f"perplexity:{texts}"
    found = laconic.evaluate(file, task, against=original, limit=6, runtime="llama.cpp", length=8)
    lm, other = with_texts(compressed(4, True)), with_texts(model("llama"))
    expected = evaluate(lm, [task], limit=6, against=other, cost=False)
    assert found.fidelity is not None and expected.fidelity is not None
    ours, theirs = found.results[task]["perplexity"].value, expected.results[task]["perplexity"].value
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert found.fidelity.kl == pytest.approx(expected.fidelity.kl, rel=0.2, abs=1e-4)
    assert found.fidelity.predictions == expected.fidelity.predictions
    settings = found.to_dict()["settings"][task]
    assert settings["runtime"] == "llama.cpp" and "dtype" not in settings


def test_the_program_prints_both_models(files: tuple[Path, Path], texts: Path, capsys: Output) -> None:
    command = ["evaluate", str(files[0]), "--against", str(files[1]), "--tasks", f"perplexity:{texts}", "--limit", "3"]
    assert status([*command, "--runtime", "llama.cpp", "--length", "8,16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cost = found["cost"]
    assert [timing["prompt"] for timing in cost["generation"]] == [8, 16]
    assert all(timing["decode_tokens_per_second"] > 0 for timing in cost["generation"])
    assert cost["bytes"] == files[0].stat().st_size < found["original"]["cost"]["bytes"]
    assert status([*command, "--runtime", "llama.cpp", "--length", "8"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Size and speed in llama-cpp-python" in printed and "original" in printed and "Distance" in printed


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"llama\.cpp cannot load '.*model\.gguf': "):
        laconic.evaluate(tmp_path / "model.gguf", runtime="llama.cpp")
