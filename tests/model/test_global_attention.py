"""The first token has global attention in predictions, generation and timing, if a model has global attention."""

import pytest
import torch

from laconic.calibrate.passes import random_batch
from laconic.model import predict
from tests.architectures import ARCHITECTURES, BY_NAME, batch_for

GLOBAL = ["longformer-masked", "longformer-classifier", "led"]


@torch.no_grad()
@pytest.mark.parametrize("name", GLOBAL)
def test_the_first_token_attends_to_all(name: str) -> None:
    lm = BY_NAME[name].lm()
    batch = batch_for(lm.model)
    mask = batch["global_attention_mask"]
    assert mask.tolist() == [[1, 0, 0, 0, 0, 0, 0]] * 2
    labels = {"longformer-masked": batch["input_ids"], "led": batch.pop("decoder_input_ids", None)}.get(name)
    given = {key: batch[key] for key in ("input_ids", "attention_mask")} | (
        {} if labels is None else {"labels": labels}
    )
    predictions, _ = predict(lm, given)
    expected = lm.model(**given, global_attention_mask=mask).logits
    assert torch.equal(predictions.values, expected.reshape(-1, expected.shape[-1]))
    # And it matters, but to the classifiers, which do so by themselves.
    without = lm.model(**given).logits
    assert torch.equal(without, expected) == (name == "longformer-classifier")


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_only_they_are_given_the_mask(architecture) -> None:
    lm = architecture.lm()
    assert ("global_attention_mask" in random_batch(lm, 1, 8)) == (architecture.name in GLOBAL)
