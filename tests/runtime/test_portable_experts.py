"""Mixtures of experts that are traced for another runtime, expert by expert."""

import pytest
import torch

from laconic.model import LanguageModel
from laconic.runtime.portable_experts import UnrolledExperts, unroll_experts
from tests.architectures import alike
from tests.experts import MIXTURES


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_experts_one_after_another_compute_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    lm = LanguageModel.of(MIXTURES[name][0]().eval())
    twin = lm.shallow_copy()
    unroll_experts(twin)
    assert any(isinstance(module, UnrolledExperts) for module in twin.model.modules())
    tokens = torch.randint(3, lm.model.config.get_text_config().vocab_size, (2, 7))
    assert alike(twin.model(tokens).logits, lm.model(tokens).logits)
    # The model itself is as it was.
    assert not any(isinstance(module, UnrolledExperts) for module in lm.model.modules())
