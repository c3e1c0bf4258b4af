"""The inputs of a decoder are its labels, one token later, as the class itself shifts them."""

import pytest
import torch
import transformers as hf

from laconic.calibrate import Calibration, GradCovariance, InputCovariance, collect_stats
from laconic.model import LanguageModel
from laconic.model.tokens import shift_labels
from tests.architectures import BART, BY_NAME, SMALL, Architecture

SIZES = {**BART, **SMALL, "decoder_start_token_id": 2}
WITHOUT_A_METHOD = {
    "m2m_100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**SIZES)),
    "blenderbot": lambda: hf.BlenderbotForConditionalGeneration(hf.BlenderbotConfig(**SIZES)),
    "blenderbot-small": lambda: hf.BlenderbotSmallForConditionalGeneration(hf.BlenderbotSmallConfig(**SIZES)),
}


@pytest.mark.parametrize("name", [*WITHOUT_A_METHOD, "bart", "t5"])
@torch.no_grad()
def test_a_run_with_labels_is_a_run_with_the_shifted_labels(name: str) -> None:
    architecture = Architecture(name, WITHOUT_A_METHOD[name]) if name in WITHOUT_A_METHOD else BY_NAME[name]
    model = architecture.model()
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[4, 5, 6, 2], [7, 2, -100, -100]])
    own = model(input_ids=ids, labels=labels, use_cache=False).logits
    shifted = model(input_ids=ids, decoder_input_ids=shift_labels(model, labels), use_cache=False).logits
    assert torch.equal(own, shifted)
    assert -100 not in shift_labels(model, labels)


def test_states_that_a_module_keeps_do_not_prevent_copies() -> None:
    """RecurrentGemma keeps the state of its last run, with its graph, and torch copies no tensor with a graph."""
    config = hf.RecurrentGemmaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        lru_width=32, attention_window_size=4, block_types=["recurrent", "attention"], **SMALL,
    )  # fmt: skip
    with pytest.warns(match="has no entry"):
        lm = LanguageModel.of(hf.RecurrentGemmaForCausalLM(config).eval())
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    collect_stats(lm, Calibration([batch]), {InputCovariance, GradCovariance}, lm.sites())
    again = lm.copy()
    assert torch.equal(again.model(**batch, use_cache=False).logits, lm.model(**batch, use_cache=False).logits)
