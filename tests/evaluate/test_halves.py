"""A language model in two halves is the whole model, for every kind of body and head."""

import pytest
import torch

from laconic.evaluate.halves import WholeBody, divide
from laconic.evaluate.products import BFLOAT16
from laconic.model import ModelTask
from laconic.model.predictions import run_model
from laconic.runtime import serve
from tests.architectures import ARCHITECTURES, BY_NAME, Architecture, batch_for, compress_everything

CAUSAL = [one for one in ARCHITECTURES if one.lm().task is ModelTask.CAUSAL]
# Logits that are scaled, a head with a bias, a decoder inside the base model.
RELATIVES = [BY_NAME[name] for name in ("cohere", "granite", "gptj", "opt-norm-after", "falcon-heads")]


@pytest.mark.parametrize("architecture", [*CAUSAL, *RELATIVES], ids=lambda one: one.name)
@torch.inference_mode()
def test_the_halves_give_the_logits_of_the_whole(architecture: Architecture):
    lm = architecture.lm()
    batch = batch_for(lm.model)
    mask = batch["attention_mask"].bool()
    whole = run_model(lm, batch)["logits"][mask]
    halves = divide(lm)
    [states] = halves.body.last_hidden_states([batch])
    assert halves.head is not None and states.shape[-1] < whole.shape[-1] + 1
    parts = torch.cat([halves.logits(part) for part in states[mask].split(5)])
    assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_compressed_model_is_divided_and_stays_as_it_was():
    lm = compress_everything(BY_NAME["llama-tied"].lm(), rank=6)
    before = str(lm.model)
    batch = batch_for(lm.model)
    halves = divide(lm)
    [states] = halves.body.last_hidden_states([batch])
    assert torch.allclose(halves.logits(states[0]), run_model(lm, batch)["logits"][0], rtol=1e-4, atol=1e-5)
    assert str(lm.model) == before


def test_a_head_does_not_keep_the_blocks():
    lm = BY_NAME["llama"].lm()
    head = divide(lm).head
    assert head is not None
    assert {name for name, _ in head.lm.model.named_parameters()} == {"lm_head.weight"}


@torch.inference_mode()
def test_a_model_in_another_runtime_runs_whole():
    lm = BY_NAME["gpt2"].lm()
    batch = batch_for(lm.model)
    halves = divide(serve(lm, "onnx").lm)
    assert halves.head is None and isinstance(halves.body, WholeBody)
    [logits] = halves.body.last_hidden_states([batch])
    mask = batch["attention_mask"].bool()
    assert torch.allclose(halves.logits(logits[mask]), run_model(lm, batch)["logits"][mask], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the processor has no bfloat16")
@torch.inference_mode()
def test_products_in_bfloat16_are_near():
    lm = BY_NAME["llama"].lm()
    batch = batch_for(lm.model)
    [states], [rounded] = (divide(lm, *dtype).body.last_hidden_states([batch]) for dtype in ((), (BFLOAT16,)))
    distance = (rounded - states).norm() / states.norm()
    assert rounded.dtype is torch.float32 and 1e-4 < distance < 2e-2
