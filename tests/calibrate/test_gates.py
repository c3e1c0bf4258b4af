"""Gradients of gates against finite differences, text by text; all weights as they were afterwards."""

import pytest
import torch
from torch import nn

from laconic.calibrate import Calibration
from laconic.calibrate.gates import gate_gradients
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, predict
from laconic.model.prunable_group import PrunableGroup, prunable_groups
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches

EPSILON = 1e-2
"""Norms of Llama and T5 round to float32 whatever the model is in."""


def with_labels(lm: LanguageModel) -> list[Batch]:
    batches = labelled_batches(lm, 2)
    if lm.task.value == "classification":
        for batch in batches:
            batch["labels"] = torch.tensor([0, 1])
    return batches


def losses(lm: LanguageModel, batches: list[Batch]) -> torch.Tensor:
    """−log p of the labels, summed over the predictions of each text, in fp64."""
    found = []
    with torch.no_grad():
        for batch in batches:
            values, rows, labels, *_ = predict(lm, batch)[0]
            assert labels is not None
            each = nn.functional.cross_entropy(values, labels.long(), reduction="none")
            found.append(torch.zeros(len(batch["input_ids"]), dtype=each.dtype).index_add_(0, rows, each))
    return torch.cat(found)


def turned(lm: LanguageModel, inner: PrunableGroup, part: int, by: float, batches: list[Batch]) -> torch.Tensor:
    """The losses with one part of all that lose the same parts turned up to 1 + by."""
    kept = []
    for each in prunable_groups(lm):
        if each.coupling == inner.coupling:
            weight = each.writer.module.get_parameter("weight")
            kept.append((weight, weight.detach().clone()))
            columns = slice(part * each.size, (part + 1) * each.size)
            with torch.no_grad():
                (weight if isinstance(each.writer.module, nn.Linear) else weight.T)[:, columns] *= 1 + by
    changed = losses(lm, batches)
    with torch.no_grad():
        for weight, before in kept:
            weight.copy_(before)
    return changed


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama", "t5", "bart", "albert-groups", "gpt-neox"])
def test_against_finite_differences(name):
    lm = BY_NAME[name].lm()
    lm.model.double()
    batches = with_labels(lm)
    inners = prunable_groups(lm)
    gates = gate_gradients(lm, Calibration(batches, labels="data"), inners)
    for inner in {inner.coupling: inner for inner in (inners[0], inners[1], inners[-1])}.values():
        for part in (0, inner.count - 1):
            up, down = (turned(lm, inner, part, by, batches) for by in (EPSILON, -EPSILON))
            slopes = (up - down) / (2 * EPSILON)
            assert gates[inner.coupling].absolute[part].item() == pytest.approx(slopes.abs().mean().item(), rel=1e-2)
            assert gates[inner.coupling].squared[part].item() == pytest.approx(slopes.square().mean().item(), rel=1e-2)


def test_no_batch_size_enters():
    lm = BY_NAME["bert-classifier"].lm()
    whole = with_labels(lm)
    rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for batch in whole for row in (0, 1)]
    found = [gate_gradients(lm, Calibration(batches, labels="data"), prunable_groups(lm)) for batches in (whole, rows)]
    for key, gates in found[0].items():
        torch.testing.assert_close(gates.absolute, found[1][key].absolute, rtol=1e-4, atol=1e-9)


def test_enumerated_labels_give_the_second_moment_of_the_gates():
    """E over texts and over labels drawn from the model, exactly."""
    lm = BY_NAME["bert-classifier"].lm()
    batches = labelled_batches(lm, 2)
    inners = prunable_groups(lm)[:1]
    found = gate_gradients(lm, Calibration(batches, labels="enumerated"), inners)[inners[0].coupling].squared
    expected = torch.zeros_like(found)
    for label in range(3):
        for batch in batches:
            for row in (0, 1):
                one = {name: tensor[row : row + 1] for name, tensor in batch.items()} | {
                    "labels": torch.tensor([label])
                }
                gates = gate_gradients(lm, Calibration([one], labels="data"), inners)[inners[0].coupling]
                with torch.no_grad():
                    p = predict(lm, one)[0].values.softmax(-1)[0, label].item()
                expected += p * gates.squared / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
@pytest.mark.parametrize("labels", ["sampled", "auto"])
def test_no_mean_of_magnitudes_is_above_the_root_of_that_of_squares(name, labels):
    """However many losses a text has: they are drawn four times where it has one prediction."""
    lm = BY_NAME[name].lm()
    for gates in gate_gradients(lm, Calibration(labelled_batches(lm, 3), labels=labels), prunable_groups(lm)).values():
        assert (gates.absolute.square() <= gates.squared * (1 + 1e-9)).all()
        assert (gates.absolute.square() >= 0.1 * gates.squared).all()


def test_the_model_is_left_as_it_was():
    lm = BY_NAME["gpt2"].lm()
    lm.model.train()
    prunable_groups(lm)[0].writer.module.get_parameter("weight").requires_grad_(False)
    trained = {name for name, part in lm.model.named_parameters() if part.requires_grad}
    gate_gradients(lm, Calibration(labelled_batches(lm)), prunable_groups(lm))
    assert {name for name, part in lm.model.named_parameters() if part.requires_grad} == trained
    assert lm.model.training and not any(module._forward_pre_hooks for module in lm.model.modules())


def test_what_cannot_be_measured_is_one_sentence():
    lm = BY_NAME["gpt2"].lm()
    with pytest.raises(UserError, match="The calibration data is empty"):
        gate_gradients(lm, Calibration([]), prunable_groups(lm))
    lm.model.get_parameter("transformer.ln_f.weight").data[0] = torch.nan
    with pytest.raises(UserError, match="predictions are not finite"):
        gate_gradients(lm, Calibration(labelled_batches(lm)), prunable_groups(lm))
