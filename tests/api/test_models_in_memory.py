"""`laconic.compress` on a model in memory: its class, tokenizer, dtype, order of methods, and mistakes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

import laconic
from laconic.calibrate import Calibration
from laconic.errors import UserError
from laconic.formats import LowRank
from laconic.model import LanguageModel
from laconic.recipe.flow import CombinedOutcome
from tests.architectures import BY_NAME
from tests.tokens import letters


def test_the_python_entry_gives_back_the_same_class(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    inputs = torch.tensor([[2, 3, 4]])
    small = laconic.compress(model, "kfac-svd:multiple=1", 0.5, data=["the cat is good", "the dog is bad"] * 3).model
    assert small is model and isinstance(small, BertForSequenceClassification)
    assert any(isinstance(module, LowRank) for module in small.modules())
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    saved, kept = again.state_dict(), small.state_dict()
    assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in saved)
    with torch.no_grad():
        # Not to the last bit: how products are summed depends on where in memory the matrices lie.
        assert torch.allclose(again(inputs).logits, small.eval()(inputs).logits, atol=1e-6)
        assert torch.allclose(laconic.materialize(small)(inputs).logits, small(inputs).logits, atol=1e-6)


def test_the_python_entry_makes_up_no_tokenizer(tmp_path: Path) -> None:
    BY_NAME["bert-classifier"].model().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"There is no tokenizer in '.*', where the model was loaded from"):
        laconic.compress(model, "drone", data=["the cat is good"])
    with pytest.raises(UserError, match="no tokenizer for a model made in memory; pass"):
        laconic.compress(BY_NAME["bert-classifier"].model(), "drone", data=["the cat is good"])
    laconic.compress(model, "drone:multiple=1", data=["a cat", "is good"] * 8, tokenizer=letters())


def test_the_python_entry_reads_targets_in_their_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BY_NAME["bart"].model().save_pretrained(tmp_path / "model")
    letters("pair").save_pretrained(tmp_path / "model")
    letters("none").save_pretrained(tmp_path / "model" / "target_tokenizer")
    (tmp_path / "rows.jsonl").write_text('{"source": "abc", "target": "de"}\n' * 4)
    seen: list[torch.Tensor] = []

    def look(lm: LanguageModel, steps: object, data: Calibration) -> tuple[LanguageModel, CombinedOutcome]:
        seen.extend(batch["labels"] for batch in data.batches)
        return lm, CombinedOutcome(plans=(), matrices=0, nbytes=0, dense_nbytes=0, untied=(), predicted_losses=())

    monkeypatch.setattr(sys.modules["laconic.api.compress"], "apply_steps", look)
    for model in (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model"), str(tmp_path / "model")):
        laconic.compress(model, "drone", data=str(tmp_path / "rows.jsonl"))
    expected = [letters("none")("de")["input_ids"]] * 4
    assert [labels.tolist() for labels in seen] == [expected, expected]


def test_half_precision_stays_half_precision(tiny_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dtype=torch.bfloat16).train()
    small = laconic.compress(model, "svd:multiple=1", 0.5).model
    assert {part.dtype for part in small.parameters()} == {torch.bfloat16}
    assert small.training


def test_methods_in_order_and_a_size_of_their_own(tiny_model: Path) -> None:
    small = laconic.compress(str(tiny_model), ["svd:rank=4", "svd:rank=2"], targets="ffn").model
    ranks = {module.rank for module in small.modules() if isinstance(module, LowRank)}
    assert ranks == {2, 4}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "svdd"}, "did you mean 'svd'"),
        ({"method": "svd", "keep": 1.5}, "keep must be in"),
        ({"method": "svd", "keep": 0.0}, "keep must be in"),
        ({"method": "svd:rank=3", "keep": 0.5}, "its size is set by rank"),
        ({"method": "svd", "targets": "fnn"}, "did you mean 'ffn'"),
        ({"method": "svd", "allocate": "fair"}, "allocate must be one of"),
        ({"method": "drone"}, "data is missing"),
        ({"method": "drone", "data": []}, "data has no texts"),
    ],
)
def test_the_python_entry_names_the_mistake(tiny_model: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        laconic.compress(str(tiny_model), **arguments)
