"""Collect statistics of linear layers in one pass over the data, shared among processes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from laconic import processes
from laconic.calibrate.collation import to_device
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.losses import Labels, LossGradients, divide
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.starved import StarvedExperts, warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Site, predict
from laconic.numerics.moments import check_finite
from laconic.progress import Track, silent
from laconic.system import keeping_large_blocks


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
        generator = torch.Generator().manual_seed(self.seed)
        seeds = torch.randint(2**32, (len(self.batches),), generator=generator, device="cpu")
        mine = processes.shard(list(zip(self.batches, seeds.tolist(), strict=True)))
        return [(batch, torch.Generator().manual_seed(seed)) for batch, seed in mine]


def check_not_empty(data: Calibration) -> None:
    """Check that there is a batch.

    Args:
        data: the calibration data.

    Raises:
        UserError: there is none.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")


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
    check_not_empty(data)
    if not needs:
        return {site.name: LayerStats(support=site.support) for site in sites}, []
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    with evaluating(lm):
        # Without gradients the logits are not needed, and those of a long batch may not fit into memory.
        halves = divide(lm, data.batches, sites)
        losses = LossGradients(lm, data.labels, halves)
    with (
        evaluating(lm),
        keeping_large_blocks(),
        without_weight_gradients(lm),
        processes.sync_errors(),
        Recorder(lm, sites, needs, shrink_starved=shrink_starved) as recorder,
        torch.set_grad_enabled(with_gradients),
    ):
        for batch, generator in data.share("Measuring the layers"):
            inputs = to_device(batch, lm.device)
            recorder.start(inputs)
            if with_gradients:
                recorder.count_predictions([*losses.backward(inputs, generator)][-1])
            elif halves is not None:
                halves.run_body(inputs)
            else:
                predict(lm, inputs)
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
    """A context in which no weight requires a gradient; afterwards, those do that did before.

    Weights that replaced others within the context require gradients too, unless they have no values.
    """
    frozen = {name for name, parameter in lm.model.named_parameters() if not parameter.requires_grad}
    lm.model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, parameter in lm.model.named_parameters():
            if parameter.is_floating_point() and parameter.numel() and name not in frozen:
                parameter.requires_grad_()
