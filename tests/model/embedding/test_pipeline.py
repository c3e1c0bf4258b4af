"""Stages from hidden states to a vector, against numbers that sentence-transformers gave."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from laconic.model.embedding import MEAN_POOLING, Files, Pipeline, TextSettings
from laconic.model.embedding_modules import MODES, DenseStage, LayerNorm, Normalize, Pooling, Stage

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())
STATES, MASK = torch.tensor(REFERENCE["states"]), torch.tensor(REFERENCE["mask"])
POOLED = MASK * (torch.arange(MASK.shape[1]) >= REFERENCE["prompt"])


def filled(stage: Stage, name: str) -> Stage:
    stage.load_state_dict({key: torch.tensor(value) for key, value in REFERENCE["tensors"][name].items()})
    return stage


PIPELINES: dict[str, list[Stage]] = {
    **{mode: [Pooling((mode,))] for mode in MODES},
    **{f"{mode} without the prompt": [Pooling((mode,), include_prompt=False)] for mode in MODES},
    "dense": [Pooling(("mean", "cls")), filled(DenseStage((2, 6), nn.Tanh()), "dense"), Normalize()],
    "layer norm": [Pooling(("mean",)), filled(LayerNorm(3), "layer norm")],
}


def test_every_reference_is_used() -> None:
    assert PIPELINES.keys() == REFERENCE["vectors"].keys() and "sentence-transformers 6.2" in REFERENCE["source"]


@pytest.mark.parametrize("name", PIPELINES)
def test_vectors_are_the_library_s(name: str) -> None:
    pipeline = Pipeline(PIPELINES[name], TextSettings(), Files())
    torch.testing.assert_close(pipeline(STATES, MASK, POOLED), torch.tensor(REFERENCE["vectors"][name]))


@pytest.mark.parametrize("name", PIPELINES)
def test_padding_changes_nothing(name: str) -> None:
    pipeline = Pipeline(PIPELINES[name], TextSettings(), Files())
    for row, count in enumerate(MASK.sum(1).tolist()):
        alone = pipeline(STATES[row : row + 1, :count], MASK[row : row + 1, :count], POOLED[row : row + 1, :count])
        torch.testing.assert_close(alone, torch.tensor(REFERENCE["vectors"][name])[row : row + 1])


def test_what_is_not_declared_is_a_mean_of_length_1() -> None:
    mean = (STATES * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    torch.testing.assert_close(MEAN_POOLING(STATES, MASK), mean / mean.norm(dim=-1, keepdim=True))
    assert MEAN_POOLING.describe() == "mean pooling, unit length (none is declared: there is no modules.json)"


def test_nothing_of_it_trains() -> None:
    pipeline = Pipeline([Pooling(("mean",)), DenseStage((2, 3), nn.Tanh())], TextSettings(), Files())
    assert not pipeline.train().training and not any(one.requires_grad for one in pipeline.parameters())
    states = STATES.clone().requires_grad_()
    pipeline(states, MASK).sum().backward()
    assert states.grad is not None and states.grad[MASK.bool()].abs().min() > 0 and not states.grad[1, 3].any()
