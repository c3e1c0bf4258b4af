"""Collect statistics of linear layers in one pass over the data, shared among processes.

Fisher losses: if y is drawn from the model's prediction p(y | z), the gradients g of −log p(y | z) satisfy
E[g g^T] = F, the Gauss-Newton Hessian of the KL divergence (Martens, arXiv 1412.1193). For few values z the expectation
is computed exactly: with F(z) = L L^T, the loss l^T z is differentiated for each column l of L
(`laconic.numerics.distributions`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from laconic import processes
from laconic.calibrate.collation import to_device
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.starved import StarvedExperts, warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError, must_be
from laconic.model import Batch, LanguageModel, Predictions, Site, predict
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
        yield from self.track(self.shares(), label)

    def shares(self) -> list[tuple[Batch, torch.Generator]]:
        """This process's share of the batches, as `share` yields them, without progress."""
        seeds = torch.randint(2**32, (len(self.batches),), generator=torch.Generator().manual_seed(self.seed))
        mine = processes.shard(list(zip(self.batches, seeds.tolist(), strict=True)))
        return [(batch, torch.Generator().manual_seed(seed)) for batch, seed in mine]


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
    lm: LanguageModel,
    data: Calibration,
    needs: Collection[type[Statistic]],
    sites: Sequence[Site],
    *,
    shrink_starved: bool = True,
) -> dict[str, LayerStats]:
    """Collect statistics of layers: run every batch forward, and backward if a gradient statistic is needed.

    Args:
        lm: the model; it is in eval mode during the call, and its mode is restored afterwards.
        data: the calibration data.
        needs: the types of statistics to collect.
        sites: the layers.
        shrink_starved: mix the statistics of experts that saw fewer tokens than their matrices have rows or columns
            with those of their layer, and give a notice of it.

    Returns:
        The statistics by layer name.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite.
    """
    stats, starved = measure_stats(lm, data, needs, sites, shrink_starved=shrink_starved)
    warn_of_starved(starved)
    return stats


def measure_stats(
    lm: LanguageModel,
    data: Calibration,
    needs: Collection[type[Statistic]],
    sites: Sequence[Site],
    *,
    shrink_starved: bool = True,
) -> tuple[dict[str, LayerStats], list[StarvedExperts]]:
    """Collect statistics of layers without a notice; arguments and errors are those of `collect_stats`.

    Returns:
        The statistics by layer name, and the experts whose statistics were mixed with shared ones.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    if not needs:
        return {site.name: LayerStats(support=site.support) for site in sites}, []
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    with (
        evaluating(lm),
        without_weight_gradients(lm),
        processes.sync_errors(),
        Recorder(lm, sites, needs, shrink_starved=shrink_starved) as recorder,
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
    return stats, recorder.starved


def check_stats(stats: Mapping[str, LayerStats], needs: Collection[type[Statistic]]) -> None:
    """Raise UserError if a statistic of a type in `needs` is not finite; `stats` is by layer name."""
    for name, statistics in stats.items():
        for kind in needs:
            # A sum is finite only if every term is, and takes one pass over the numbers.
            check_finite(
                statistics[kind].total.sum(),
                f"The {kind.__name__} statistic of '{name}' is not finite; check the model and the data.",
            )


@contextmanager
def without_weight_gradients(lm: LanguageModel) -> Iterator[None]:
    """Within the context no weight requires a gradient; afterwards `requires_grad` is restored."""
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
