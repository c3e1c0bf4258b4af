"""How far a model that was changed is from what it was, on the calibration rows."""

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
"""Numbers that the original predicts are kept up to this many (256 MiB), and predicted again beyond."""

LEAST_LEAD = 1.0
"""Standard errors by which the divergence of held-out texts has to fall: few of them often fall by chance."""


class Divergences(NamedTuple):
    """Of each text that this process has: KL(original ‖ changed), summed over its predictions; how many they are."""

    totals: Float[Tensor, " texts"]
    counts: Float[Tensor, " texts"]

    @property
    def mean(self) -> float:
        """Nats per prediction, over the texts of all processes; infinite where the changed model gives no numbers."""
        total, count = processes.summed(torch.stack((self.totals.sum(), self.counts.sum()))).tolist()
        mean = total / max(count, 1)
        return inf if isnan(mean) else mean

    def __add__(self, other: "Divergences") -> "Divergences":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of the texts of both."""
        return Divergences(torch.cat((self.totals, other.totals)), torch.cat((self.counts, other.counts)))

    def beats(self, other: "Divergences") -> bool:
        """Whether the mean is below that of `other` by more than few texts fall by chance."""
        return self.lead(other) > LEAST_LEAD

    def lead(self, other: "Divergences") -> float:
        """By how many standard errors the mean is below that of `other`, whose texts are the same.

        Infinite where all texts gain alike, minus infinity where they gain nothing or there is but one.
        """
        if isinf(other.mean):
            return -inf if isinf(self.mean) else inf
        mean, error = self.gain(other)
        if not mean > 0 or isinf(error):
            return -inf
        return mean / error if error > 0 else inf

    def gain(self, other: "Divergences") -> "Gain":
        """By how much the mean is below that of `other`, whose texts are the same.

        Predictions of one text go together, so it is the texts that are counted.
        """
        gains = other.totals - self.totals
        count, gained = processes.summed(torch.stack((self.counts.sum(), gains.sum()))).tolist()
        mean = gained / max(count, 1)
        off = (gains - mean * self.counts).square().sum()
        squares, texts = processes.summed(torch.stack((off, off.new_tensor(len(gains))))).tolist()
        return Gain(mean, sqrt(squares * texts / (texts - 1)) / max(count, 1) if texts > 1 else inf)


class Gain(NamedTuple):
    """Nats per prediction by which a divergence falls, and their standard error; infinite where there is one text."""

    mean: float
    error: float


class KLMetric:
    """Mean KL(original ‖ changed) in nats per prediction; infinite where the changed model predicts no numbers.

    Each process runs a share of the batches, and all have the mean over all.
    """

    def __init__(self, original: LanguageModel, batches: Sequence[Batch]) -> None:
        self.original = original
        mine = processes.share(batches)
        self.batches = [to_device(batch, original.device) for batch in mine]
        self._kept: dict[int, Predictions] = {}

    def __call__(self, changed: LanguageModel) -> float:
        return self.each(changed).mean

    @torch.inference_mode()
    def each(self, changed: LanguageModel) -> Divergences:
        """Text by text."""
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
