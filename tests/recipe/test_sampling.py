"""Calibration rows have the length that is usual for the kind of model."""

from pathlib import Path

import pytest

import laconic
from laconic.model import ModelTask
from laconic.recipe.sampling import usual_length
from tests.architectures import BY_NAME


@pytest.mark.parametrize("task", list(ModelTask))
def test_rows_of_causal_models_are_longer(task: ModelTask) -> None:
    assert usual_length(task) == (512 if task is ModelTask.CAUSAL else 128)


@pytest.mark.parametrize(("name", "length"), [("llama", 512), ("bert-classifier", 128)])
def test_the_recipe_says_the_length_that_was_read(name: str, length: int, tiny_model: Path, texts: Path) -> None:
    model, source = BY_NAME[name].model(), str(tiny_model)
    tokenizer = laconic.load(source).tokenizer
    result = laconic.compress(model, "wanda:sparsity=0.5", data=str(texts), samples=4, tokenizer=tokenizer)
    assert result.record.recipe.max_length == length
    short = laconic.compress(
        BY_NAME[name].model(), "wanda:sparsity=0.5", data=str(texts), max_length=9, samples=4, tokenizer=tokenizer
    )
    assert short.record.recipe.max_length == 9
