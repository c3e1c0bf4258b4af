"""The memory of a streamed run from shapes: that of one block, whatever their number."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laconic.compress import Compress, Shorten
from laconic.methods import Gptq, KfacSvd
from laconic.model import LanguageModel
from laconic.recipe.estimate.in_memory import step_memory
from laconic.recipe.estimate.streamed import streamed_memory
from tests.tiny_models import DECODER, SMALL

BATCHES = [{"input_ids": torch.empty(2, 8, device="meta")}]
STEPS: dict[str, Compress | Shorten] = {
    "gptq": Compress(method=Gptq(bits=4)),
    "kfac-svd": Compress(method=KfacSvd(), keep=0.5),
    "shorten": Shorten(drop=1, select="influence"),
}


def llama(blocks: int, words: int = 64) -> LanguageModel:
    with torch.device("meta"):
        shape: dict[str, Any] = {**DECODER, **SMALL, "num_hidden_layers": blocks, "vocab_size": words}
        return LanguageModel.of(LlamaForCausalLM(LlamaConfig(**shape)))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_it_does_not_grow_with_the_number_of_blocks(step) -> None:
    few, many = llama(2), llama(8)
    needed = streamed_memory(few, [step], BATCHES)
    assert 0 < needed == streamed_memory(many, [step], BATCHES) < step_memory(many, step, BATCHES)


def test_an_embedding_that_is_not_measured_does_not_count() -> None:
    step = STEPS["gptq"]
    assert streamed_memory(llama(2, 64), [step], BATCHES) == streamed_memory(llama(2, 128), [step], BATCHES)
    measured = Compress(method=Gptq(bits=4), targets=("all",))
    assert streamed_memory(llama(2, 64), [measured], BATCHES) < streamed_memory(llama(2, 128), [measured], BATCHES)


def test_a_step_that_names_a_later_block_needs_at_most_the_whole_model() -> None:
    step = Shorten(blocks=(5,))
    assert streamed_memory(llama(8), [step], BATCHES) <= step_memory(llama(8), step, BATCHES)
