"""What is known of one matrix: running sums over the tokens that passed through it.

Every statistic is additive over batches, shards and machines (`merge`). Sums are kept in fp64; a batch is multiplied
in fp64 on CPU and in fp32 elsewhere. Rows of padding never reach them.

Notation: x (tokens, in) the inputs of a layer; g (tokens, out) the gradients at its outputs of the *sum* of the losses.
The input of a word embedding is one-hot, so it comes as token numbers, (tokens,), and its moments are diagonal.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.numerics.psd import InputMoment, OutputMoment

Inputs = Float[Tensor, "tokens in"] | Int[Tensor, " tokens"]
Gradients = Float[Tensor, "tokens out"]

# Above this width a full second moment of gradients (a head's vocabulary) no longer fits in memory.
FULL_MOMENT_LIMIT = 16_384


class Statistic:
    """A running sum and the count that it is divided by; what is summed is up to the subclasses."""

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self.count = 0

    def merge(self, other: "Statistic") -> None:
        """Add what another shard collected of the same matrix."""
        self.total = self.total + other.total.to(self.total.device)
        self.count += other.count

    def _mean(self) -> Tensor:
        return self.total / max(self.count, 1)

    def _add(self, amount: Tensor) -> None:
        self.total += amount.to(self.total.device, torch.float64)


class InputStatistic(Statistic, ABC):
    """Collected in the forward pass from the inputs alone; `count` is tokens."""

    @classmethod
    @abstractmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "InputStatistic":
        """Nothing seen yet; `lookup` for a word embedding."""

    @abstractmethod
    def update(self, x: Inputs) -> None: ...


class GradientStatistic(Statistic, ABC):
    """Collected in the backward pass; `count` is predictions, so that losses come out in nats per prediction."""

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "GradientStatistic":
        """Nothing seen yet of a matrix of `shape` (out, in)."""

    @abstractmethod
    def update(self, x: Inputs, g: Gradients) -> None:
        """Add the tokens of one sequence (`per_sequence`) or of a whole batch."""

    per_sequence: bool = False


def _precise(x: Tensor) -> Tensor:
    # Condition numbers of 1e8 and more are usual here; fp32 products lose the small directions.
    return x.double() if x.device.type == "cpu" else x.float()


class Gram(InputStatistic):
    """C = E[x x^T], uncentred: (in, in), or its diagonal (in,) for one-hot inputs."""

    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "Gram":
        size = (in_features,) if lookup else (in_features, in_features)
        return cls(torch.zeros(size, dtype=torch.float64, device=device))

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        if x.ndim == 1:
            self._add(torch.bincount(x, minlength=len(self.total)))
        else:
            x = _precise(x)
            self._add(x.T @ x)

    @property
    def matrix(self) -> InputMoment:
        return self._mean()


class _ColumnStatistic(InputStatistic):
    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "_ColumnStatistic":
        return cls(torch.zeros(in_features, dtype=torch.float64, device=device))

    @property
    def vector(self) -> Float[Tensor, " in"]:
        return self._mean()


class Mean(_ColumnStatistic):
    """μ = E[x], (in,)."""

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        self._add(torch.bincount(x, minlength=len(self.total)) if x.ndim == 1 else _precise(x).sum(0))


class AbsMean(_ColumnStatistic):
    """E|x|, (in,)."""

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        self._add(torch.bincount(x, minlength=len(self.total)) if x.ndim == 1 else _precise(x).abs().sum(0))


class AbsMax(_ColumnStatistic):
    """max |x|, (in,); merging takes the larger."""

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        if x.ndim == 1:
            self.total[x.unique()] = 1.0
        elif len(x):
            self.total = torch.maximum(self.total, x.abs().amax(0).to(self.total))

    def merge(self, other: "Statistic") -> None:
        self.total = torch.maximum(self.total, other.total.to(self.total.device))
        self.count += other.count

    @property
    def vector(self) -> Float[Tensor, " in"]:
        return self.total


class OutputGram(GradientStatistic):
    """F = Σ g g^T / predictions: (out, out), or its diagonal (out,) above FULL_MOMENT_LIMIT outputs."""

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "OutputGram":
        out_features = shape[0]
        size = (out_features,) if out_features > FULL_MOMENT_LIMIT else (out_features, out_features)
        return cls(torch.zeros(size, dtype=torch.float64, device=device))

    def update(self, x: Inputs, g: Gradients) -> None:
        g = _precise(g)
        self._add(g.square().sum(0) if self.total.ndim == 1 else g.T @ g)

    @property
    def matrix(self) -> OutputMoment:
        return self._mean()


class Fisher(GradientStatistic):
    """Φ = Σ_sequences (Σ_t g_t x_t^T)² / predictions, element-wise: (out, in)."""

    per_sequence = True

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "Fisher":
        return cls(torch.zeros(shape, dtype=torch.float64, device=device))

    def update(self, x: Inputs, g: Gradients) -> None:
        if x.ndim == 1:
            seen, place = x.unique(return_inverse=True)
            gradient = g.new_zeros(len(seen), g.shape[1], dtype=torch.float32).index_add_(0, place, g.float())
            self.total[:, seen] += gradient.T.square().to(self.total)
        else:
            # Entry by entry, so there are no small directions to lose: fp32 products are enough, and twice as fast.
            self._add((g.float().T @ x.float()).square())

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        return self._mean()
