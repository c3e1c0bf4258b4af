"""Streamed models are compressed as those in memory, method by method."""

from dataclasses import replace

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Gptq, KfacPrune, KfacSvd, Magnitude, Rtn, Svd, Wanda, Yaqa
from laconic.model import load
from laconic.model.loading import load_streamed
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES

STEPS = {
    "svd": Compress(method=Svd(), keep=0.5),
    "rtn": Compress(method=Rtn(bits=4)),
    "gptq": Compress(method=Gptq(bits=4)),
    "gptq, all matrices": Compress(method=Gptq(bits=4), targets=("all",)),
    "gptq, in order": Compress(method=Gptq(bits=4), sequential=True),
    "wanda, in order, all matrices": Compress(method=Wanda(sparsity=0.5), sequential=True, targets=("all",)),
    "kfac-svd": Compress(method=KfacSvd(), keep=0.5),
    "kfac-svd, shared inputs": Compress(method=KfacSvd(), keep=0.5, share_inputs=True),
    "kfac-prune": Compress(method=KfacPrune(sparsity=0.5)),
    "yaqa": Compress(method=Yaqa(bits=3)),
}
TOLERANCE = 1e-2
"""The order in which the gradients of a decoder's blocks are summed for the encoder may change the last bits."""


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens", "ignore:.*keeps .* of the bytes")
@pytest.mark.parametrize("name", ["llama", "bert-classifier", "t5", "mixtral"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_streamed_model_is_compressed_as_the_one_in_memory(name, step, tmp_path) -> None:
    model = MIXTURES[name][0]() if name in MIXTURES else BY_NAME[name].model()
    model.save_pretrained(tmp_path / "model")
    lm, streamed = load(str(tmp_path / "model")), load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    data = Calibration(labelled_batches(lm, 2))
    if name == "t5" and step.sequential and step.targets == ("all",):
        with pytest.raises(UserError, match="lies before both stacks"):
            step.apply(streamed, data)
        return
    assert step.apply(streamed, data) == step.apply(lm, data)
    blocks = [path for _, found in lm.stacks() for path, _ in found]
    for path in blocks:
        assert all(tensor.is_meta for tensor in streamed.model.get_submodule(path).parameters())
    with streamed.on_loan(""):
        expected, found = lm.model.state_dict(), streamed.model.state_dict()
    assert expected.keys() == found.keys()
    rtol = TOLERANCE if name == "t5" else 0
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Compress(method=Magnitude(), keep=0.5, allocate="global"), "allocate: global"),
        (Compress(method=Svd(), error=0.1, allocate="threshold"), "allocate: threshold"),
        (Compress(method=KfacSvd(), keep=0.5, allocate="spectrum", currency="latency"), "currency: latency"),
        (Compress(method=Gptq(bits=4), anchored=True), "anchored"),
        (Compress(method=KfacSvd(), keep=0.5, sequential=True), "sequential"),
    ],
)
def test_what_needs_the_whole_model_says_why(step, reason) -> None:
    assert str(step.stream_obstacle(BY_NAME["llama"].lm())).startswith(reason)


def test_most_compression_needs_one_block_at_a_time() -> None:
    assert [step.stream_obstacle(BY_NAME["llama"].lm()) for step in STEPS.values()] == [None] * len(STEPS)


@pytest.mark.parametrize("name", ["t5", "bart-untied"])
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Compress(method=Gptq(bits=4), sequential=True, targets=("all",)), "with sequential, '"),
        (Compress(method=KfacSvd(), keep=0.5, targets=("all",)), "the gradients of '"),
    ],
)
def test_an_embedding_before_two_stacks_is_no_target(name, step, reason) -> None:
    lm = BY_NAME[name].lm()
    obstacle = str(step.stream_obstacle(lm))
    assert obstacle.startswith(reason) and obstacle.endswith("leave it out of the targets")
    assert replace(step, targets=("blocks", "head")).stream_obstacle(lm) is None
    assert Compress(method=Gptq(bits=4), targets=("all",)).stream_obstacle(lm) is None
    assert step.stream_obstacle(BY_NAME["llama"].lm()) is None
