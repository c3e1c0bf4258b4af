"""How far a model that was changed is from what it was, on the calibration rows."""

from collections.abc import Sequence
from math import inf, isnan

import torch

from laconic import processes
from laconic.model import Batch, LanguageModel, Predictions, divergence, predict

KEPT_PREDICTIONS = 2**26
"""Numbers that the original predicts are kept up to this many (256 MiB), and predicted again beyond."""


class Judge:
    """Mean KL(original ‖ changed) in nats per prediction; infinite where the changed model predicts no numbers.

    Each process runs a share of the batches, and all have the mean over all.
    """

    def __init__(self, original: LanguageModel, batches: Sequence[Batch]) -> None:
        self.original = original
        mine = processes.share(batches)
        self.batches = [{name: tensor.to(original.device) for name, tensor in batch.items()} for batch in mine]
        self._kept: dict[int, Predictions] = {}

    @torch.inference_mode()
    def __call__(self, changed: LanguageModel) -> float:
        total, count = 0.0, 0
        for number, batch in enumerate(self.batches):
            there = divergence(self._reference(number), predict(changed, batch)[0])
            total, count = total + there.sum().item(), count + len(there)
        total, count = processes.summed(torch.tensor((total, count), dtype=torch.float64)).tolist()
        mean = total / max(count, 1)
        return inf if isnan(mean) else mean

    def _reference(self, number: int) -> Predictions:
        if number in self._kept:
            return self._kept[number]
        predictions, _ = predict(self.original, self.batches[number])
        if sum(kept.values.numel() for kept in self._kept.values()) + predictions.values.numel() <= KEPT_PREDICTIONS:
            self._kept[number] = predictions
        return predictions
