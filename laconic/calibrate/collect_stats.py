"""Collect statistics of linear layers, or gradients of gates, in one pass over the data, shared among processes.

Fisher losses: if y is drawn from the model's prediction p(y | z), the gradients g of −log p(y | z) satisfy
E[g g^T] = F, the Gauss-Newton Hessian of the KL divergence (Martens, arXiv 1412.1193). For few values z the expectation
is computed exactly: with F(z) = L L^T, the loss l^T z is differentiated for each column l of L
(`laconic.numerics.distributions`).

Gates: every head or channel gets a gate ξ = 1 that multiplies its columns of the input of the output projection. The
importance of a head is E|∂L/∂ξ| (P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS
2019, equation 2) or E(∂L/∂ξ)² (P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
equation 8). Both are computed for each text separately, so they do not depend on the batch size. For enumerated labels,
E|∂L/∂ξ| is approximated by a mean over the columns of L.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic import processes
from laconic.calibrate.collation import to_device
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError, must_be
from laconic.model import Batch, LanguageModel, Predictions, Site, predict
from laconic.model.prunable_group import PrunableGroup
from laconic.numerics.moments import check_finite
from laconic.progress import Track, silent

Labels = Literal["auto", "sampled", "enumerated", "data"]
"""The source of the labels for the Fisher information: the predictions of the model, or the data."""


@dataclass(frozen=True)
class Calibration:
    """Calibration batches and their settings.

    Args:
        batches: batches on the CPU.
        labels: labels of the Fisher information. `sampled` draws them from the model (an unbiased estimate),
            `enumerated` weights all classes by their probability (exact), `data` takes the labels of the data (the
            empirical Fisher). `auto` enumerates up to four classes and samples otherwise.
        seed: seed of all random draws.
        track: shows progress.
        corpus: all rows of the split, for steps that train on more than the batches; None if the batches are all.
        max_length: largest number of tokens of a row.
        batch_size: largest number of rows of a batch.
        samples: number of rows drawn from the corpus; None if it is the number of rows of the batches.
    """

    batches: list[Batch]
    labels: Labels = "auto"
    seed: int = 0
    track: Track = silent
    corpus: Corpus | None = None
    max_length: int = 128
    batch_size: int = 16
    samples: int | None = None

    def share(self, label: str) -> Iterator[tuple[Batch, torch.Generator]]:
        """Yield this process's share of the batches, each with its own random generator.

        The generator of a batch depends only on `seed` and the position of the batch, so the draws are the same for any
        number of processes.

        Args:
            label: the text of the progress bar.
        """
        seeds = torch.randint(2**32, (len(self.batches),), generator=torch.Generator().manual_seed(self.seed))
        mine = processes.shard(list(zip(self.batches, seeds.tolist(), strict=True)))
        for batch, seed in self.track(mine, label):
            yield batch, torch.Generator().manual_seed(seed)


ENUMERATED_UP_TO = 4
DRAWS = 4
"""Labels sampled for each row with one prediction; a row with several predictions gets one label for each."""


def fisher_losses(predictions: Predictions, labels: Labels, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the losses of one batch whose gradients have the Fisher information as their second moment.

    Args:
        predictions: the predictions of the batch.
        labels: where labels come from; see `Calibration`.
        generator: draws sampled labels.

    Raises:
        UserError: a prediction is not finite; `labels` is "data" and the data has none; or `labels` is "enumerated"
            and a row has several predictions, for which enumeration is not exact.
    """
    values, distribution = predictions.values, predictions.distribution
    check_finite(predictions.possible_values, "The model's predictions are not finite; check the model and the data.")
    # Predictions of one row share hidden states. With enumeration their gradients would not be independent, as they
    # are with sampled labels, and F would contain cross terms.
    single = len(predictions.rows.unique()) == len(predictions.rows)
    few = values.shape[-1] <= ENUMERATED_UP_TO
    if labels == "enumerated" and not single:
        raise must_be("labels", "'sampled' or 'data' for a model with several predictions per row", labels)
    if labels == "data":
        if predictions.labels is None:
            raise must_be("labels", "'sampled' or 'enumerated' for this data, which has no labels", "data")
        yield distribution.loss(values, predictions.labels).sum()
    elif labels == "enumerated" or (labels == "auto" and few and single):
        yield from ((values * axis).sum() for axis in distribution.fisher_factor(values))
    else:
        draws = DRAWS if single else 1
        for _ in range(draws):
            yield distribution.loss(values, distribution.draw(values, generator)).sum() / draws**0.5


def collect_stats(
    lm: LanguageModel, data: Calibration, needs: Collection[type[Statistic]], sites: Sequence[Site]
) -> dict[str, LayerStats]:
    """Collect statistics of layers: run every batch forward, and backward if a gradient statistic is needed.

    Args:
        lm: the model; it is in eval mode during the call, and its mode is restored afterwards.
        data: the calibration data.
        needs: the types of statistics to collect.
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
    with (
        evaluating(lm),
        _frozen(lm),
        processes.sync_errors(),
        Recorder(lm, sites, needs) as recorder,
        torch.set_grad_enabled(with_gradients),
    ):
        for batch, generator in data.share("Measuring the layers"):
            inputs = to_device(batch, lm.device)
            recorder.start(inputs)
            predictions, _ = predict(lm, inputs)
            if with_gradients:
                losses = list(fisher_losses(predictions, data.labels, generator))
                for number, loss in enumerate(losses, start=1):
                    loss.backward(retain_graph=number < len(losses))
                recorder.count_predictions(len(predictions.values))
    stats = recorder.stats(gathered=True)
    check_stats(stats, needs)
    return stats


def check_stats(stats: Mapping[str, LayerStats], needs: Collection[type[Statistic]]) -> None:
    """Raise UserError if a statistic of a type in `needs` is not finite; `stats` is by layer name."""
    for name, statistics in stats.items():
        for kind in needs:
            # A sum is finite only if every term is, and takes one pass over the numbers.
            check_finite(
                statistics[kind].total.sum(),
                f"The {kind.__name__} statistic of '{name}' is not finite; check the model and the data.",
            )


@dataclass
class GateGradients:
    """Gradients of the gates of one group of heads or channels, averaged over texts.

    Args:
        absolute: E|∂L/∂ξ|, (parts,).
        squared: E(∂L/∂ξ)², (parts,).
    """

    absolute: Float[Tensor, " parts"]
    squared: Float[Tensor, " parts"]


def gate_gradients(lm: LanguageModel, data: Calibration, groups: Sequence[PrunableGroup]) -> dict[str, GateGradients]:
    """Run every batch forward and backward and average the gradients of the gates.

    Args:
        lm: the model.
        data: the calibration data.
        groups: groups of heads or channels; those with the same `coupling`, which are pruned together, share gates.

    Returns:
        The gradients by `PrunableGroup.coupling`.

    Raises:
        UserError: there is no batch, or predictions or gradients are not finite.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    counts = {group.coupling: group.count for group in groups}
    found = {key: GateGradients(*torch.zeros(2, count, dtype=torch.float64)) for key, count in counts.items()}
    texts = 0
    with processes.sync_errors(), evaluating(lm), _frozen(lm):
        for batch, generator in data.share("Measuring the gates"):
            inputs = to_device(batch, lm.device)
            texts += len(inputs["input_ids"])
            by_loss = list(_gradients(lm, inputs, groups, counts, data, generator))
            for gradients in by_loss:
                for key, gradient in gradients.items():
                    # The squared gradients of the losses sum to one expectation, so their absolute values are divided
                    # by the square root of the number of losses.
                    found[key].absolute += gradient.abs().sum(0) / len(by_loss) ** 0.5
                    found[key].squared += gradient.square().sum(0)
    texts = int(processes.all_reduce_sum(torch.tensor(texts)))
    for key, gates in found.items():
        gates.absolute = processes.all_reduce_sum(gates.absolute) / texts
        gates.squared = processes.all_reduce_sum(gates.squared) / texts
        check_finite(
            gates.squared, f"The gradients of the gates of '{key}' are not finite; check the model and the data."
        )
    return found


def _gradients(
    lm: LanguageModel,
    batch: Batch,
    groups: Sequence[PrunableGroup],
    counts: Mapping[str, int],
    data: Calibration,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "texts parts"]]]:
    """Yield ∂L/∂ξ, (texts, parts) by coupling, for each loss of one batch."""
    texts = len(batch["input_ids"])
    gates = {key: torch.ones(texts, count, device=lm.device, requires_grad=True) for key, count in counts.items()}
    with _apply_gates(groups, gates):
        predictions, _ = predict(lm, batch)
    for loss in fisher_losses(predictions, data.labels, generator):
        gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True)
        yield {key: gradient.double().cpu() for key, gradient in zip(gates, gradients, strict=True)}


@contextmanager
def _apply_gates(groups: Sequence[PrunableGroup], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the input of each output projection is multiplied by the gates of its heads or channels."""

    def hook_of(group: PrunableGroup) -> RemovableHandle:
        gate = gates[group.coupling].repeat_interleave(group.size, dim=1)

        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # Some models flatten texts and tokens into one dimension.
            rows = args[0].reshape(len(gate), -1, gate.shape[1])
            return ((rows * gate[:, None].to(rows.dtype)).view_as(args[0]), *args[1:])

        return group.writer.module.register_forward_pre_hook(multiply)

    with ExitStack() as hooks:
        for group in groups:
            hooks.callback(hook_of(group).remove)
        yield


@contextmanager
def _frozen(lm: LanguageModel) -> Iterator[None]:
    """Within the context no weight requires a gradient; afterwards `requires_grad` is restored."""
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
