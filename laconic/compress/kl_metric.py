"""The KL divergence of a changed model from the original, on calibration rows."""

from collections.abc import Sequence
from math import inf, isinf, isnan, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import processes
from laconic.calibrate.batching import to_device
from laconic.calibrate.classes import output_places
from laconic.model import Batch, LanguageModel, Predictions, divergence, predict

KEPT_PREDICTIONS = 2**26
"""Largest number of logits of the original that are cached (256 MiB in fp32); the others are computed again."""

LEAST_LEAD = 1.0
"""A divergence must be lower by more than this many standard errors, because small differences occur by chance."""


class Divergences(NamedTuple):
    """KL(original ‖ changed) of each text of this process.

    Args:
        totals: the divergence of each text in nats, summed over its predictions, (texts,).
        counts: the number of predictions of each text, (texts,).
    """

    totals: Float[Tensor, " texts"]
    counts: Float[Tensor, " texts"]

    @property
    def mean(self) -> float:
        """Mean divergence in nats per prediction, over the texts of all processes; infinite if it is NaN."""
        total, count = processes.all_reduce_sum(torch.stack((self.totals.sum(), self.counts.sum()))).tolist()
        mean = total / max(count, 1)
        return inf if isnan(mean) else mean

    def __add__(self, other: "Divergences") -> "Divergences":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the divergences of the texts of both."""
        return Divergences(torch.cat((self.totals, other.totals)), torch.cat((self.counts, other.counts)))

    def beats(self, other: "Divergences") -> bool:
        """Return whether the mean is below that of `other`, on the same texts, by more than one standard error."""
        return self.lead(other) > LEAST_LEAD

    def lead(self, other: "Divergences") -> float:
        """Return by how many standard errors the mean is below that of `other`, on the same texts.

        Returns:
            Infinity if the standard error is zero or only `other` is infinite; minus infinity if the mean is not lower
            or there is only one text.
        """
        if isinf(other.mean):
            return -inf if isinf(self.mean) else inf
        mean, error = self.gain(other)
        if not mean > 0 or isinf(error):
            return -inf
        return mean / error if error > 0 else inf

    def gain(self, other: "Divergences") -> "Gain":
        """Return by how much the mean is below that of `other`, on the same texts.

        The standard error treats texts as independent samples, because the predictions within a text are correlated.
        """
        gains = other.totals - self.totals
        count, gained = processes.all_reduce_sum(torch.stack((self.counts.sum(), gains.sum()))).tolist()
        mean = gained / max(count, 1)
        off = (gains - mean * self.counts).square().sum()
        squares, texts = processes.all_reduce_sum(torch.stack((off, off.new_tensor(len(gains))))).tolist()
        return Gain(mean, sqrt(squares * texts / (texts - 1)) / max(count, 1) if texts > 1 else inf)


class Gain(NamedTuple):
    """The fall of a divergence.

    Args:
        mean: the fall, in nats per prediction.
        error: its standard error; infinite if there is only one text.
    """

    mean: float
    error: float


class KLMetric:
    """Measures the mean KL(original ‖ changed) in nats per prediction; infinite if it is NaN.

    Each process runs a share of the batches; all get the mean over all batches.

    Args:
        original: the model to compare with.
        batches: calibration batches, on the CPU.
    """

    def __init__(self, original: LanguageModel, batches: Sequence[Batch]) -> None:
        self.original = original
        mine = processes.shard(batches)
        self.batches = [to_device(batch, original.device) for batch in mine]
        self._kept: dict[int, Predictions] = {}

    def __call__(self, changed: LanguageModel) -> float:
        return self.each(changed).mean

    @torch.inference_mode()
    def each(self, changed: LanguageModel) -> Divergences:
        """Return the divergence of each text of this process's batches.

        Args:
            changed: a model of the same task; its outputs are matched by class name.
        """
        places = output_places(self.original, changed)
        totals, counts = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for number, batch in enumerate(self.batches):
            predictions, _ = predict(changed, batch)
            if places is not None:
                predictions = predictions._replace(values=predictions.values[:, places])
            there = divergence(self._reference(number), predictions).double().cpu()
            rows, size = predictions.rows.cpu(), len(batch["input_ids"])
            totals.append(torch.zeros(size, dtype=torch.float64).index_add(0, rows, there))
            counts.append(torch.bincount(rows, minlength=size).double())
        return Divergences(torch.cat(totals), torch.cat(counts))

    def _reference(self, number: int) -> Predictions:
        if number in self._kept:
            return self._kept[number]
        predictions, _ = predict(self.original, self.batches[number])
        if sum(kept.values.numel() for kept in self._kept.values()) + predictions.values.numel() <= KEPT_PREDICTIONS:
            self._kept[number] = predictions
        return predictions
