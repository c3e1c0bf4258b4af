"""The KL divergence of a changed model from the original on calibration rows, and the noise in its differences."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from math import inf, isinf, isnan, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import processes
from laconic.calibrate.anchor import count_rows
from laconic.calibrate.classes import match_outputs
from laconic.calibrate.collation import to_device
from laconic.calibrate.losses import LOGITS, count_logits
from laconic.calibrate.shared_runs import ALL, SharedRuns
from laconic.model import Batch, LanguageModel, Predictions, divergence, predict

MAX_CACHED_LOGITS = 2**26
"""Largest number of logits of the original that are cached (256 MiB in fp32); the others are computed again."""

MIN_LEAD = 1.0
"""A divergence must be lower by more than this many standard errors, because small differences occur by chance."""

SIGNIFICANT = 0.05
"""Probability under chance below which a variation between estimates counts as real."""

ROWS = 32
"""Calibration rows for measuring blocks; the same number of other rows compares the plans."""
ROWS_OF_ONE = 256
"""`ROWS` for tasks with one prediction per row, which need more rows for the same number of predictions."""


class RowSplit(NamedTuple):
    """Calibration rows in two disjoint parts.

    Args:
        measured: rows to measure the loss of blocks on.
        judging: rows to compare plans on.
    """

    measured: list[Batch]
    judging: list[Batch]


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
        return self.lead(other) > MIN_LEAD

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
        squared_errors = (gains - mean * self.counts).square().sum()
        sums = torch.stack((squared_errors, squared_errors.new_tensor(len(gains))))
        squares, texts = processes.all_reduce_sum(sums).tolist()
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
        runs: of streamed models, the runs of their blocks over the same batches (`own_batches`), so that only what
            follows the blocks is run here; None to run whole models.
    """

    def __init__(self, original: LanguageModel, batches: Sequence[Batch], runs: SharedRuns | None = None) -> None:
        self.original, self._runs = original, runs
        self.batches = own_batches(original, batches)
        self._cached: dict[tuple[int, int | None], Predictions] = {}

    def __call__(self, changed: LanguageModel) -> float:
        return self.each(changed).mean

    @torch.inference_mode()
    def each(self, changed: LanguageModel) -> Divergences:
        """Return the divergence of each text of this process's batches.

        Args:
            changed: a model of the same task; its outputs are matched by class name.
        """
        places = match_outputs(self.original, changed)
        totals, counts = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        with changed.loaned_on_call(), self.original.loaned_on_call():
            for number, part in self._parts():
                predictions = self._predict(changed, number, part)
                if places is not None:
                    predictions = predictions._replace(values=predictions.values[:, places])
                values = _divergence(self._reference(number, part), predictions).double().cpu()
                rows, size = predictions.rows.cpu(), len(self.batches[number]["input_ids"][part])
                totals.append(torch.zeros(size, dtype=torch.float64, device="cpu").index_add(0, rows, values))
                counts.append(torch.bincount(rows, minlength=size).double())
        return Divergences(torch.cat(totals), torch.cat(counts))

    def _parts(self) -> Iterator[tuple[int, slice]]:
        """The rows whose logits are in memory at a time, with the number of their batch: one row if a batch has many.

        Whole models run whole batches, because the blocks of a row would otherwise be read for it alone.
        """
        for number, batch in enumerate(self.batches):
            if self._runs is None or count_logits(self.original, batch) <= LOGITS:
                yield number, ALL
            else:
                yield from ((number, slice(row, row + 1)) for row in range(len(batch["input_ids"])))

    def _predict(self, lm: LanguageModel, number: int, part: slice) -> Predictions:
        batch = {name: tensor[part] for name, tensor in self.batches[number].items()}
        with nullcontext() if self._runs is None else self._runs.replaying(lm, number, part):
            return predict(lm, batch)[0]

    def _reference(self, number: int, part: slice) -> Predictions:
        key = (number, part.start)
        if key in self._cached:
            return self._cached[key]
        predictions = self._predict(self.original, number, part)
        cached_logits = sum(cached.values.numel() for cached in self._cached.values())
        if cached_logits + predictions.values.numel() <= MAX_CACHED_LOGITS:
            self._cached[key] = predictions
        return predictions


def _divergence(reference: Predictions, other: Predictions) -> Float[Tensor, " n"]:
    """The divergence of each prediction. It is computed in float64, for some predictions at a time."""
    size = max(1, LOGITS // max(1, other.values.shape[-1]))
    pairs = zip(reference.values.split(size), other.values.split(size), strict=True)
    parts = [divergence(reference._replace(values=one), other._replace(values=two)) for one, two in pairs]
    return torch.cat(parts) if parts else other.values.new_zeros(0)


def own_batches(lm: LanguageModel, batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches that this process runs, on the device of the model."""
    return [to_device(batch, lm.device) for batch in processes.shard(batches)]


def shrink_estimates(y: Float[Tensor, " k"], s: Float[Tensor, " k"]) -> tuple[float, Float[Tensor, " k"]]:
    """Shrink several estimates towards their mean, each by its own standard error (empirical Bayes).

    The estimates yᵢ have errors of variance sᵢ² and true values that vary by τ² about a mean μ. With wᵢ = 1 / sᵢ² and
    Q = Σ wᵢ (yᵢ − ȳ)², where ȳ = Σ wᵢ yᵢ / Σ wᵢ,

        τ² = max(0, (Q − (k − 1)) / (Σ wᵢ − Σ wᵢ² / Σ wᵢ)),    μ = Σ yᵢ / (τ² + sᵢ²) / Σ 1 / (τ² + sᵢ²).

    The best estimate of a true value is then μ + (yᵢ − μ) τ² / (τ² + sᵢ²). τ² is 0 unless so large a Q has a
    probability below 0.05 by chance.

    Args:
        y: the estimates.
        s: their standard errors; infinite for an estimate without information.

    Returns:
        μ, and k estimates between it and `y`; all are μ if the estimates may differ only by chance.

    Reference:
        R. DerSimonian, N. Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials 7 (1986), 177-188; B.
        Efron, C. Morris, JASA 68 (1973), 117-130.

    Example:
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.1]))
        (2.0, tensor([1.0050, 2.9950]))
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        (2.0, tensor([2., 2.]))
    """
    s2 = s.square().clamp(min=1e-12 * y.square().mean().item() + 1e-300)
    w = 1 / s2
    deviations = y - (w * y).sum() / w.sum()
    q = (w * deviations.square()).sum()
    k = len(y)
    half = q.new_tensor((k - 1) / 2)
    chance = torch.special.gammaincc(half, q / 2) if k > 1 else torch.ones_like(q)
    tau2 = torch.zeros_like(q)
    if chance < SIGNIFICANT:
        tau2 = ((q - (k - 1)) / (w.sum() - w.square().sum() / w.sum())).clamp(min=0)
    v = 1 / (tau2 + s2)
    mean = (v * y).sum() / v.sum()
    return mean.item(), mean + (y - mean) * tau2 / (tau2 + s2)


def split_halves(batches: Sequence[Batch], most: int = ROWS) -> RowSplit | None:
    """Split the rows into two disjoint halves of at most `most` rows; None if there are fewer than two for each."""
    halves = RowSplit([], [])
    for start, half in enumerate(halves):
        remaining = most
        for batch in batches:
            half_of_batch = {name: tensor[start::2][:remaining].contiguous() for name, tensor in batch.items()}
            count = len(half_of_batch["input_ids"])
            if count:
                half.append(half_of_batch)
            remaining -= count
    counts = [count_rows(half) for half in halves]
    return halves if min(counts) >= 2 else None
