"""Statistics of classifiers of tokens, of models that find answers, and of models that choose, against enumeration."""

import pytest
import torch
from torch import Tensor

from laconic.calibrate import Calibration, Fisher, GradCovariance, InputCovariance, collect_stats
from laconic.calibrate.collect_stats import Labels
from laconic.calibrate.gates import gate_gradients
from laconic.errors import UserError
from laconic.model import Batch, InputTokens, LanguageModel, ModelTask, predict
from laconic.model.prunable_group import prunable_groups
from tests.architectures import batch_for
from tests.calibrate.test_gates import EPSILON, turned
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TASKS, TOKENS

NAMES = ("bert.encoder.layer.1.attention.self.value", "bert.embeddings.word_embeddings")
COPIES = 600


def lm_for(task: ModelTask, family: str = "bert") -> LanguageModel:
    lm = TASK_MODELS[f"{family}-{task.value}"].lm()
    lm.model.double()
    return lm


def with_labels(lm: LanguageModel) -> Batch:
    batch = batch_for(lm.model)
    if lm.task is TOKENS:
        batch["labels"] = torch.tensor([[-100, 2, -100, 0, 1, -100, -100], [-100, 1, -100, -100, 2, -100, -100]])
    elif lm.task is CHOICE:
        batch["labels"] = torch.tensor([2, 0])
    else:
        batch |= {"start_positions": torch.tensor([3, 0]), "end_positions": torch.tensor([5, 0])}
        batch["context_mask"] = torch.tensor([[1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0, 0]]).bool()
    return batch


def enumerated(lm: LanguageModel, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """The mean of p(y) (∂ log p(y) / ∂W)² over rows and all labels, and the second moment of the output's gradients."""
    module = lm.model.get_submodule(name)
    fisher, moment = 0, 0
    count = len(predict(lm, batch)[0].values)
    for row in range(len(batch["input_ids"])):
        outputs: list[Tensor] = []
        hook = module.register_forward_hook(lambda _, args, output, outputs=outputs: outputs.append(output))
        values = predict(lm, {key: tensor[row : row + 1] for key, tensor in batch.items()})[0].values
        hook.remove()
        # The labels of several predictions are drawn independently, so that products of two have the mean 0.
        for log_p in values.log_softmax(-1):
            for log_q in log_p[log_p.isfinite()]:
                weights = (module.get_parameter("weight"), outputs[0])
                by_weight, by_output = torch.autograd.grad(log_q, weights, retain_graph=True)
                g = by_output.reshape(-1, by_output.shape[-1])
                fisher = fisher + log_q.detach().exp() * by_weight.square() / count
                moment = moment + log_q.detach().exp() * g.T @ g / count
    assert isinstance(fisher, Tensor) and isinstance(moment, Tensor)
    return (fisher.T if isinstance(module, torch.nn.Embedding) else fisher), moment


def measured(lm: LanguageModel, batch: Batch, name: str, labels: Labels = "auto") -> tuple[Tensor, Tensor]:
    (site,) = lm.sites((name,))
    stats = collect_stats(lm, Calibration([batch], labels), {Fisher, GradCovariance}, [site])[site.name]
    return stats[Fisher].matrix, stats[GradCovariance].matrix


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_the_fisher_information_is_that_of_every_label(task: ModelTask, name: str) -> None:
    lm = lm_for(task)
    batch = with_labels(lm)
    expected = enumerated(lm, batch, name)
    if task is CHOICE:
        # One of three choices is enumerated by default. The choices of a row are one sample.
        for found, exact in zip(measured(lm, batch, name), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-9)
    repeated = {key: tensor.repeat(COPIES, *(1 for _ in tensor.shape[1:])) for key, tensor in batch.items()}
    for found, exact in zip(measured(lm, repeated, name, "sampled"), expected, strict=True):
        assert found.isfinite().all() and error(found, exact) < 0.1


@pytest.mark.parametrize("task", [TOKENS, ANSWER])
def test_several_predictions_of_a_row_are_not_enumerated(task: ModelTask) -> None:
    lm = lm_for(task)
    with pytest.raises(UserError, match=r"labels must be 'sampled' or 'data' for a model with several predictions"):
        measured(lm, with_labels(lm), NAMES[0], "enumerated")


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_the_data_give_the_empirical_fisher(task: ModelTask) -> None:
    lm = lm_for(task)
    batch = with_labels(lm)
    weight = lm.model.get_parameter(f"{NAMES[0]}.weight")
    expected, count = torch.zeros_like(weight), 0
    for row in range(2):
        predictions = predict(lm, {key: tensor[row : row + 1] for key, tensor in batch.items()})[0]
        assert predictions.labels is not None
        loss = predictions.distribution.loss(predictions.values, predictions.labels).sum()
        expected += torch.autograd.grad(loss, weight)[0].square()
        count += len(predictions.values)
    torch.testing.assert_close(measured(lm, batch, NAMES[0], "data")[0], expected / count, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", TASK_MODELS)
def test_padding_counts_for_nothing(name: str) -> None:
    """Two rows together, the second padded, give what each gives alone; the choices of a row included."""
    lm = TASK_MODELS[name].lm()
    batch = batch_for(lm.model)
    alone = [{key: tensor[row : row + 1] for key, tensor in batch.items()} for row in range(2)]
    alone[1] = {key: tensor[..., :5] for key, tensor in alone[1].items()}
    # The vectors of relative positions are as many as tokens, padding included.
    sites = [site for site in lm.sites(("blocks", "head")) if InputTokens.OWN not in site.places[0].reads]
    found, expected = (
        collect_stats(lm, Calibration(batches), {InputCovariance}, sites) for batches in ([batch], alone)
    )
    for site in sites:
        ours, theirs = found[site.name][InputCovariance], expected[site.name][InputCovariance]
        assert error(ours.matrix, theirs.matrix) < 1e-4, site.name


@pytest.mark.parametrize("task", TASKS)
def test_gates_against_finite_differences(task: ModelTask) -> None:
    lm = lm_for(task)
    batch = with_labels(lm)
    group = next(group for group in prunable_groups(lm))
    found = gate_gradients(lm, Calibration([batch], "data"), [group])[group.coupling]
    slopes = (turned(lm, group, 1, EPSILON, [batch]) - turned(lm, group, 1, -EPSILON, [batch])) / (2 * EPSILON)
    assert found.squared[1].item() == pytest.approx(slopes.square().mean().item(), rel=1e-3)
