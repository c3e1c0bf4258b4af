"""Gradients at gates of a streamed model are those of the model in memory."""

from functools import partial

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.calibrate.gate_pass import BlockGates, Slopes, differentiate_gates
from laconic.compress.depth.cuts import Cut, all_cuts
from laconic.compress.depth.importance import apply_gates, importances
from laconic.errors import UserError
from laconic.model import Batch, load
from laconic.model.layers import find_layers
from laconic.model.loading import load_streamed
from tests.calibrate.test_collect_stats import labelled_batches
from tests.loaned import MODELS


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "mixtral"])
def test_gates_of_blocks_have_the_gradients_of_the_whole_model(name: str, tmp_path) -> None:
    MODELS[name]().save_pretrained(tmp_path / "model")
    lm, streamed = load(str(tmp_path / "model")), load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    data = Calibration(labelled_batches(lm, 2))
    (layers,) = find_layers(streamed)
    found: dict[tuple[int, int], list[torch.Tensor]] = {}

    def make(path: str, number: int, batch: Batch) -> BlockGates:
        block = layers.paths.index(path)
        gates = torch.ones(1, len(batch["input_ids"]), requires_grad=True)

        def finish(slopes: Slopes) -> None:
            found[block, number] = list(slopes[0])

        return BlockGates([gates], partial(apply_gates, streamed, [Cut("blocks", block)], gates), finish)

    count = differentiate_gates(streamed, data, make)
    losses = {len(slopes) for slopes in found.values()}
    assert len(found) == len(layers) * len(data.batches) and len(losses) == 1
    squares = [
        sum(slope.double().square().sum() for number in range(len(data.batches)) for slope in found[block, number])
        for block in range(len(layers))
    ]
    expected = importances(lm, data, all_cuts(lm, "blocks")["blocks"])
    assert [float(0.5 * square / count) for square in squares] == list(expected.values())


def test_gates_need_a_batch(tmp_path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "model")
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    with pytest.raises(UserError, match="calibration data is empty"):
        differentiate_gates(streamed, Calibration([]), lambda *_: BlockGates([], torch.no_grad, lambda _: None))
