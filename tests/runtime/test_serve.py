"""A model served by another runtime is judged and timed as that runtime runs it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartModel, MambaConfig, MambaForCausalLM

from laconic.calibrate.passes import random_batch
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import Conditions, evaluate
from laconic.model import LanguageModel, predict, run_model
from laconic.runtime import COMPILE, EAGER, ONNX, OPENVINO, serve
from laconic.runtime.cache_layout import IN_TORCH, check_cache
from laconic.runtime.signature import Signature
from laconic.store import save
from tests.architectures import BART, BY_NAME, SMALL
from tests.evaluate.models import with_tokenizer

for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(name)

Output = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_a_served_model_is_judged_like_any_other(texts: Path) -> None:
    lm = with_tokenizer("llama")
    task = f"perplexity:{texts}"
    # Neither is the original changed nor is what is served the original.
    under = Conditions(batch=(2,), length=(6,), runtime=OPENVINO)
    found = evaluate(lm, [task], limit=4, against=lm, cost=under)
    plain = evaluate(lm, [task], limit=4, cost=False)
    assert found.results[task]["perplexity"].value == pytest.approx(plain.results[task]["perplexity"].value, rel=1e-4)
    assert found.fidelity is not None and abs(found.fidelity.kl) < 1e-6
    assert found.cost is not None and found.cost.speeds[0].peak_bytes is None and not found.cost.generations
    assert found.cost.runtime["name"] == OPENVINO and found.cost.runtime["bytes"] > 0
    assert serve(lm).lm is lm


def test_tokens_may_be_given_by_place() -> None:
    """As the lm-evaluation-harness does."""
    lm = BY_NAME["gpt2"].lm()
    ids = random_batch(lm, 2, 5)["input_ids"]
    with torch.inference_mode():
        expected, found = (one.model(ids).logits for one in (lm, serve(lm, ONNX).lm))
    assert torch.allclose(expected, found, atol=1e-4)


def test_labels_are_shifted_as_the_model_shifts_them() -> None:
    lm = BY_NAME["t5"].lm()
    batch = random_batch(lm, 2, 6)
    batch["labels"] = batch.pop("decoder_input_ids").clone()
    batch["labels"][1, 4:] = -100
    served = serve(lm, ONNX).lm
    with torch.inference_mode():
        ours, theirs = predict(lm, batch)[0].values, predict(served, batch)[0].values
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_decoder_of_a_model_without_a_head_reads_the_text_where_nothing_is_said() -> None:
    torch.manual_seed(0)
    lm = LanguageModel.of(BartModel(BartConfig(**BART, **SMALL)).eval())
    batch = random_batch(lm, 2, 6)
    del batch["decoder_input_ids"]
    feeds = Signature.of(lm).feeds(lm, batch)
    assert torch.equal(feeds["decoder_input_ids"], batch["input_ids"])
    assert torch.equal(lm.model(**feeds)[0], run_model(lm, batch)[0])


def test_what_an_exported_model_cannot_do_is_refused() -> None:
    lm = BY_NAME["llama"].lm()
    served = serve(lm, ONNX).lm
    with pytest.raises(UserError, match="got 'inputs_embeds', which it does not take"):
        served.model(**random_batch(lm, 1, 4), inputs_embeds=torch.zeros(1, 4, 8))
    with pytest.raises(UserError, match="no runtime 'onnxx': did you mean 'onnx'"):
        serve(lm, "onnxx")


def test_a_compiled_model_computes_the_same() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    service = serve(lm, COMPILE)
    with torch.inference_mode():
        ids, mask = random_batch(lm, 2, 5).values()
        expected, found = (one.model(ids, attention_mask=mask)["logits"] for one in (lm, service.lm))
    assert torch.allclose(expected, found, atol=1e-5)
    assert service.describe()["name"] == COMPILE


def test_a_compiler_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    lm = BY_NAME["bert-base"].lm(seed=7)
    with pytest.raises(UserError, match=r"torch\.compile fails on BertModel"), torch.inference_mode():
        serve(lm, COMPILE).lm.model(**random_batch(lm, 3, 7))


def test_the_command_line_measures_a_grid_in_a_runtime(capsys: Output, tiny_model: Path) -> None:
    asked = ["evaluate", str(tiny_model), "--batch", "1,3", "--length", "4,6", "--runtime", "onnx"]
    assert status([*asked, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert [(one["batch"], one["length"]) for one in cost["latency"]] == [(1, 4), (3, 4), (1, 6), (3, 6)]
    assert cost["runtime"]["name"] == "onnx" and set(cost["parts"]) >= {"embedding", "attention", "ffn", "head"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "0"], "--batch must be whole numbers above 0, like 1,8; got '0'"),
        (["--batch", "99999999999999999999"], "--batch must be at most 2147483647; got '99999999999999999999'"),
        (["--length", "1," + "9" * 5000], "--length must be at most 2147483647"),
        (["--length", "1,x"], "--length must be whole numbers"),
        (["--batch", ""], "--batch must be whole numbers"),
        (["--runtime", "tensorrt"], "no runtime 'tensorrt'"),
    ],
)
def test_mistakes_are_one_sentence(capsys: Output, tiny_model: Path, words: list[str], sentence: str) -> None:
    assert status(["evaluate", str(tiny_model), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_model_writes_text_in_a_runtime(capsys: Output, tmp_path: Path) -> None:
    save(with_tokenizer("t5"), tmp_path / "model")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"source": "a cat", "target": "a dog"}\n')
    capsys.readouterr()
    asked = ["evaluate", str(tmp_path / "model"), "--tasks", f"seq2seq:{pairs}"]
    results = []
    for runtime in ("openvino", "eager"):
        assert status([*asked, "--runtime", runtime, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["results"])
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_a_model_without_a_cache_writes_in_torch_only() -> None:
    lm = LanguageModel.of(MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1)))
    with pytest.raises(UserError, match=r"does not keep keys and values .* evaluate it in the runtime eager"):
        check_cache(lm, IN_TORCH)


def test_eager_is_the_model_itself() -> None:
    lm = BY_NAME["bert-base"].lm()
    assert serve(lm, EAGER).lm is lm and "bytes" not in serve(lm).describe()
