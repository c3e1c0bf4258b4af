"""`laconic evaluate --runtime vllm` measures a folder in vLLM. It needs what benchmarks/peers/vllm_cpu.sh makes."""

import os
from pathlib import Path

import pytest
import torch

import laconic
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.runtime.engine.vllm import LISTED, VARIABLE, WORKER, Vllm
from laconic.store import save
from tests.export.served_models import SCHEMES, compressed

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name the Python of vLLM's environment"),
]
pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")


def test_quality_is_that_of_torch(tmp_path: Path, texts: Path) -> None:
    """A compressed model, which is exported first, beside its original, which vLLM reads as it is."""
    original = compressed("llama", dtype=torch.bfloat16)
    small = compressed("llama", (SCHEMES["4 bits, groups of 32"], "blocks"), dtype=torch.bfloat16)
    for name, lm in (("small", small), ("original", original)):
        save(lm, tmp_path / name)
    task = f"perplexity:{texts}"
    found = laconic.evaluate(
        tmp_path / "small", task, against=tmp_path / "original", runtime="vllm", length=8, context=24, limit=4
    )
    expected = evaluate(small, [task], against=original, cost=False, context=24, limit=4)
    for ours, theirs in ((found.results, expected.results), (found.evaluation.original, expected.original)):
        assert ours is not None and theirs is not None
        # vLLM computes in bfloat16.
        assert ours[task]["perplexity"].value == pytest.approx(theirs[task]["perplexity"].value, rel=0.05)
    assert found.fidelity is not None and expected.fidelity is not None and found.fidelity.note is not None
    assert 0.5 * expected.fidelity.kl < found.fidelity.kl < 1.1 * expected.fidelity.kl
    assert str(LISTED) in found.fidelity.note
    cost = found.to_dict()["cost"]
    assert cost["memory_bytes"] > 1e8 and cost["generation"][0]["decode_tokens_per_second"] > 0


def test_a_text_may_be_as_long_as_the_context(tmp_path: Path) -> None:
    original = compressed("llama", dtype=torch.bfloat16)
    save(original, tmp_path / "model")
    longest = original.model.config.max_position_embeddings
    tokens = torch.randint(3, 50, (longest,), generator=torch.Generator().manual_seed(0))
    engine = Vllm(tmp_path / "model", longest)
    (found,) = engine.predict(tokens.tolist(), 1)
    assert len(found) == longest - 1 and found.nats(tokens[1:]).isfinite().all()
    engine.close()


def test_a_model_that_vllm_lacks_is_named(tmp_path: Path) -> None:
    assert WORKER.name == "vllm_worker.py" and WORKER.is_file()
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "llama"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="vLLM cannot run '"):
        Vllm(tmp_path, 8)
