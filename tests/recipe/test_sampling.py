"""Calibration rows have the length that is usual for the kind of model."""

import pytest

from laconic.model import ModelTask
from laconic.recipe.sampling import Sampling


@pytest.mark.parametrize("task", list(ModelTask))
def test_rows_of_causal_models_are_longer(task: ModelTask) -> None:
    assert Sampling().row_length(task) == (512 if task is ModelTask.CAUSAL else 128)
    assert Sampling(max_length=7).row_length(task) == 7
