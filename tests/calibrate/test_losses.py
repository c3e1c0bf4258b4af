"""The head that runs on some tokens at a time gives the losses and gradients of the whole."""

import pytest
import torch

from laconic.calibrate import Calibration, GradCovariance, InputCovariance, collect_stats, losses
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.calibrate.losses import LossGradients, divide
from laconic.model import LanguageModel, ModelTask, load
from laconic.model.halves import SHORT
from laconic.model.loading import load_streamed
from tests.architectures import ARCHITECTURES, BY_NAME, Architecture
from tests.calibrate.test_collect_stats import labelled_batches

OF_TOKENS = [one for one in ARCHITECTURES if one.lm().task in (ModelTask.CAUSAL, ModelTask.MASKED, ModelTask.SEQ2SEQ)]
RELATIVES = [BY_NAME[name] for name in ("cohere", "granite", "gptj", "opt-norm-after")]
NEEDS = {InputCovariance, GradCovariance}


def gradients(lm: LanguageModel, source: LossGradients) -> list[torch.Tensor]:
    """The gradients at the weights of the blocks, and the number of predictions, for two batches."""
    found = []
    parameters = [parameter for _, blocks in lm.stacks() for _, block in blocks for parameter in block.parameters()]
    for number, batch in enumerate(labelled_batches(lm, 2)):
        [count] = source.backward(batch, torch.Generator().manual_seed(number))
        found += [torch.tensor(float(count)), *(parameter.grad for parameter in parameters)]
        lm.model.zero_grad()
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize(
    ("architecture", "labels"),
    [*((one, "sampled") for one in (*OF_TOKENS, *RELATIVES)), (BY_NAME["llama"], "data"), (BY_NAME["t5"], "data")],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_gradients_of_a_head_on_a_few_tokens_at_a_time(architecture: Architecture, labels, monkeypatch) -> None:
    lm = architecture.lm()
    whole = gradients(lm, LossGradients(lm, labels))
    monkeypatch.setattr(losses, "LOGITS", 3 * losses._vocabulary_size(lm))
    halves = divide(lm, labelled_batches(lm, 2))
    assert halves is not None
    parts = gradients(lm, LossGradients(lm, labels, halves))
    assert len(parts) == len(whole) > 2
    # Some gradients, such as those of the biases of keys, are zero but for rounding.
    largest = max(float(tensor.abs().max()) for tensor in whole if tensor.ndim)
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", ["llama-tied", "t5"])
def test_statistics_in_memory_equal_those_of_a_streamed_model(name, monkeypatch, tmp_path) -> None:
    BY_NAME[name].model().save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    data = Calibration(labelled_batches(lm, 2))
    monkeypatch.setattr(losses, "LOGITS", 3 * losses._vocabulary_size(lm))
    expected = collect_stats(lm, data, NEEDS, lm.sites(("blocks",)))
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    for problems in blockwise_calibrate(streamed, data, NEEDS, streamed.sites(("blocks",))):
        for site, problem in problems:
            for kind in NEEDS:
                measured, total = problem.stats[kind].total, expected[site.name][kind].total
                if name == "t5":
                    # The gradients of the blocks of a decoder are added in another order.
                    torch.testing.assert_close(measured, total, rtol=0, atol=1e-5 * float(total.abs().max()))
                else:
                    assert torch.equal(measured, total), site.name


def test_a_head_that_is_measured_runs_whole(monkeypatch) -> None:
    lm = BY_NAME["llama"].lm()
    monkeypatch.setattr(losses, "LOGITS", 1)
    batches = labelled_batches(lm, 1)
    assert divide(lm, batches, lm.sites(("blocks",))) is not None
    assert divide(lm, batches, lm.sites(("all",))) is None


@pytest.mark.parametrize("architecture", OF_TOKENS, ids=lambda one: one.name)
def test_inputs_are_measured_without_the_head_where_logits_are_many(architecture: Architecture, monkeypatch) -> None:
    lm = architecture.lm()
    data, sites = Calibration(labelled_batches(lm, 2)), lm.sites(("blocks",))
    whole = collect_stats(lm, data, {InputCovariance}, sites)
    monkeypatch.setattr(losses, "LOGITS", 1)
    rows: list[int] = []
    head = lm.model.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    body = collect_stats(lm, data, {InputCovariance}, sites)
    handle.remove()
    # The row on which both halves were compared with the whole model.
    assert rows and max(rows) <= SHORT
    for name, stats in whole.items():
        assert torch.equal(stats[InputCovariance].total, body[name][InputCovariance].total)
