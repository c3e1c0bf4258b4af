"""Collect statistics of linear layers, or gradients of gates, in one pass over the data, shared among processes.

Fisher losses: with y ~ p(y | z), the gradients of −log p(y | z) have E[g g^T] = F, the Gauss-Newton Hessian of the KL
divergence (Martens, arXiv 1412.1193). For few values z the expectation is exact: with F(z) = L L^T, the scalars are the
values along the columns of L (`laconic.numerics.distributions`).

Gates: every head or channel gets a gate ξ = 1 on its columns of the input of the output projection. Head importance is
E|∂L/∂ξ| (P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, equation 2), the
squared form E(∂L/∂ξ)² that of P. Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019),
equation 8. Both are computed text by text, so no batch size enters. For enumerated labels the mean of |∂L/∂ξ| over
labels is not available, and the mean over the axes of F takes its place.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic import processes
from laconic.calibrate.batching import to_device
from laconic.calibrate.calibration import Calibration, Labels
from laconic.calibrate.layer_stats import LayerStats, gather
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError, must_be
from laconic.model import Batch, LanguageModel, Predictions, Site, predict
from laconic.model.prunable_group import PrunableGroup
from laconic.processes import sync_errors

ENUMERATED_UP_TO = 4
DRAWS = 4
"""Samples of a row with one prediction; a text of many predictions has one for each of its tokens as it is."""


def scores(predictions: Predictions, labels: Labels, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the scalars to differentiate for one batch, whose gradients have the Fisher information as second moment.

    Args:
        predictions: the predictions of the batch.
        labels: where labels come from.
        generator: draws sampled labels.

    Raises:
        UserError: a prediction is not finite, the data has no labels where those are asked for, or enumeration would
            not be exact.
    """
    if not predictions.values.isfinite().all():
        raise UserError("The model's predictions are not finite; check the model and the data.")
    # Several predictions of a row share its hidden states: summed over classes their gradients would not be
    # independent, as drawn labels are, and F would hold their cross terms.
    alone = len(predictions.rows.unique()) == len(predictions.rows)
    few = predictions.values.shape[-1] <= ENUMERATED_UP_TO
    if labels == "enumerated" and not alone:
        raise must_be("labels", "'sampled' or 'data' for a model with several predictions per row", labels)
    if labels == "data":
        yield _data_loss(predictions)
    elif labels == "enumerated" or (labels == "auto" and few and alone):
        yield from _enumerated_losses(predictions)
    else:
        draws = DRAWS if alone else 1
        yield from (_sampled_loss(predictions, generator) / draws**0.5 for _ in range(draws))


def _enumerated_losses(predictions: Predictions) -> Iterator[Tensor]:
    values = predictions.values
    yield from ((values * axis).sum() for axis in predictions.distribution.fisher_factor(values))


def _sampled_loss(predictions: Predictions, generator: torch.Generator) -> Tensor:
    values, distribution = predictions.values, predictions.distribution
    return distribution.loss(values, distribution.draw(values, generator)).sum()


def _data_loss(predictions: Predictions) -> Tensor:
    if predictions.labels is None:
        raise must_be("labels", "'sampled' or 'enumerated' for this data, which has no labels", "data")
    return predictions.distribution.loss(predictions.values, predictions.labels).sum()


def collect_stats(
    lm: LanguageModel, data: Calibration, needs: Collection[type[Statistic]], sites: Sequence[Site]
) -> dict[str, LayerStats]:
    """Run every batch forward, and backward if a gradient statistic is needed.

    Args:
        lm: the model; it is put into eval mode meanwhile.
        data: the calibration data.
        needs: the types of statistics.
        sites: the layers.

    Returns:
        The statistics by layer name.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    if not needs:
        return {site.name: LayerStats(support=site.support) for site in sites}
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    was_training = lm.model.training
    lm.model.eval().requires_grad_(False)
    try:
        with sync_errors(), Recorder(lm, sites, needs) as recorder, torch.set_grad_enabled(with_gradients):
            for batch, generator in data.share("Measuring the layers"):
                recorder.batch = to_device(batch, lm.device)
                predictions, _ = predict(lm, recorder.batch)
                if with_gradients:
                    _backpropagate(list(scores(predictions, data.labels, generator)))
                    recorder.count_predictions(len(predictions.values))
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
        lm.model.train(was_training)
    stats = recorder.stats()
    gather(stats)
    check_finite(stats, needs)
    return stats


def _backpropagate(losses: list[torch.Tensor]) -> None:
    for i, loss in enumerate(losses):
        loss.backward(retain_graph=i + 1 < len(losses))


def check_finite(stats: Mapping[str, LayerStats], needs: Collection[type[Statistic]]) -> None:
    """Raise UserError if a collected statistic is not finite."""
    for name, statistics in stats.items():
        for kind in needs:
            # One pass: a sum is finite only where every term is.
            if not torch.isfinite(statistics[kind].total.sum()):
                raise UserError(
                    f"The {kind.__name__} statistic of '{name}' is not finite; check the model and the data."
                )


@dataclass
class GateGradients:
    """Gradients of the gates of one group of parts, averaged over texts.

    Args:
        absolute: E|∂L/∂ξ|, (parts,).
        squared: E(∂L/∂ξ)², (parts,).
    """

    absolute: Float[Tensor, " parts"]
    squared: Float[Tensor, " parts"]


def gate_gradients(lm: LanguageModel, data: Calibration, inners: Sequence[PrunableGroup]) -> dict[str, GateGradients]:
    """Run every batch forward and backward, and return the gradients by `PrunableGroup.coupling`.

    Groups that lose the same parts share one gate.

    Raises:
        UserError: there is no batch, or predictions or gradients are not finite.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    counts = {inner.coupling: inner.count for inner in inners}
    found = {key: GateGradients(*torch.zeros(2, count, dtype=torch.float64)) for key, count in counts.items()}
    texts = 0
    with processes.sync_errors(), evaluating(lm), _frozen(lm):
        for batch, generator in data.share("Measuring the gates"):
            moved = to_device(batch, lm.device)
            texts += len(moved["input_ids"])
            every = list(_gradients(lm, moved, inners, counts, data, generator))
            for gradients in every:
                for key, gradient in gradients.items():
                    # The losses are such that their squares add up to one expectation.
                    found[key].absolute += gradient.abs().sum(0) / len(every) ** 0.5
                    found[key].squared += gradient.square().sum(0)
    texts = int(processes.summed(torch.tensor(texts)))
    for key, gates in found.items():
        gates.absolute = processes.summed(gates.absolute) / texts
        gates.squared = processes.summed(gates.squared) / texts
        if not gates.squared.isfinite().all():
            raise UserError(f"The gradients of the gates of '{key}' are not finite; check the model and the data.")
    return found


def _gradients(
    lm: LanguageModel,
    batch: Batch,
    inners: Sequence[PrunableGroup],
    counts: Mapping[str, int],
    data: Calibration,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "texts parts"]]]:
    """∂L/∂ξ of each text of one batch, for each of its losses in turn."""
    texts = len(batch["input_ids"])
    gates = {key: torch.ones(texts, count, device=lm.device, requires_grad=True) for key, count in counts.items()}
    with _apply_gates(inners, gates):
        predictions, _ = predict(lm, batch)
    for loss in scores(predictions, data.labels, generator):
        gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True)
        yield {key: gradient.double().cpu() for key, gradient in zip(gates, gradients, strict=True)}


@contextmanager
def _apply_gates(inners: Sequence[PrunableGroup], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context what each output projection reads is multiplied by the gates of its parts."""

    def hook_of(inner: PrunableGroup) -> RemovableHandle:
        gate = gates[inner.coupling].repeat_interleave(inner.size, dim=1)

        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # Some models flatten texts and tokens into one dimension.
            lines = args[0].reshape(len(gate), -1, gate.shape[1])
            return ((lines * gate[:, None].to(lines.dtype)).view_as(args[0]), *args[1:])

        return inner.writer.module.register_forward_pre_hook(multiply)

    handles = [hook_of(inner) for inner in inners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(lm: LanguageModel) -> Iterator[None]:
    """No gradients of weights; afterwards as it was."""
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
