"""BigBird selects full attention for short rows; laconic undoes that before every pass."""

import pytest
import torch
from transformers import BigBirdConfig, BigBirdForMaskedLM

from laconic.calibrate.passes import check_runs
from laconic.model import LanguageModel
from laconic.model.predictions import run_model
from tests.tiny_models import ENCODER, SMALL


def batch(tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_outputs_for_a_text_do_not_depend_on_the_texts_before_it() -> None:
    torch.manual_seed(0)
    sizes = {**ENCODER, **SMALL, "max_position_embeddings": 128}
    config = BigBirdConfig(**sizes, attention_type="block_sparse", block_size=4, num_random_blocks=1)
    lm = LanguageModel.of(BigBirdForMaskedLM(config).eval())
    first = run_model(lm, batch(64))["logits"]
    short = run_model(lm, batch(8))["logits"]
    assert torch.equal(run_model(lm, batch(64))["logits"], first)
    assert torch.equal(run_model(lm, batch(8))["logits"], short)
    check_runs(lm)
    assert torch.equal(run_model(lm, batch(64))["logits"], first)
    # The class itself keeps full attention.
    lm.model(**batch(8))
    assert not torch.allclose(lm.model(**batch(64)).logits, first, atol=1e-4)
