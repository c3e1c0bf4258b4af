"""Statistics of one linear layer: sums or maxima over the tokens that passed through it.

Statistics add up over batches, shards and processes (`merge`). Products within one batch are computed in fp32 (fp64 for
an fp64 model), and sums over batches are kept in fp64. Padding is left out.

Notation: x (tokens, in) the inputs of a layer; g (tokens, out) the gradients at its outputs of the *sum* of the losses.
The input of a word embedding is one-hot, so it comes as token ids, (tokens,), and its moments are diagonal.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic import processes
from laconic.calibrate.statistic import Gradients, GradientStatistic, Inputs, InputStatistic, SequenceInputs, Statistic
from laconic.numerics.gram import add_gram, mirror, symmetrize
from laconic.numerics.grouped import sum_squared_products
from laconic.numerics.moments import InputMoment, OutputMoment

# Above this width a full second moment of gradients (a head's vocabulary) no longer fits in memory.
FULL_MOMENT_LIMIT = 16_384


def precise(x: Tensor) -> Tensor:
    """Return x in the dtype that products within a batch are computed in: fp32, or fp64 for an fp64 model."""
    return x if x.dtype == torch.float64 else x.float()


class InputCovariance(InputStatistic):
    """C = E[x x^T], the uncentred covariance of the inputs: (in, in), or its diagonal (in,) for one-hot inputs.

    Example:
        >>> moment = InputCovariance.empty(2, False, torch.device("cpu"))
        >>> moment.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> moment.matrix.tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """

    @classmethod
    def from_moment(cls, moment: InputMoment, count: int | float) -> "InputCovariance":
        """Return the statistic with a given second moment.

        Args:
            moment: C, (in, in), or its diagonal (in,).
            count: number, or total weight, of the tokens that it was averaged over.
        """
        return cls.from_total(moment * count, count)

    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "InputCovariance":
        size = (in_features,) if lookup else (in_features, in_features)
        return cls(torch.zeros(size, dtype=torch.float64, device=device))

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        if x.ndim == 1:
            self._add(torch.bincount(x, minlength=len(self.total)))
        else:
            add_gram(self.total, precise(x))

    def symmetric_total(self) -> Float[Tensor, "in in"]:
        """Return `total` of a layer that is no lookup with both of its triangles, without a copy of it."""
        return mirror(self.total)

    @property
    def matrix(self) -> InputMoment:
        """C, (in, in), or its diagonal (in,)."""
        return self._mean() if self.total.ndim == 1 else symmetrize(self.total).div_(self.count or 1)


class _ColumnStatistic(InputStatistic):
    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "_ColumnStatistic":
        return cls(torch.zeros(in_features, dtype=torch.float64, device=device))

    @property
    def vector(self) -> Float[Tensor, " in"]:
        """The statistic of each input, (in,)."""
        return self._mean()


class Mean(_ColumnStatistic):
    """μ = E[x], the mean of the inputs, (in,).

    Example:
        >>> mean = Mean.empty(2, False, torch.device("cpu"))
        >>> mean.update(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> mean.vector.tolist()
        [2.0, 1.0]
    """

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        self._add(torch.bincount(x, minlength=len(self.total)) if x.ndim == 1 else precise(x).sum(0))


class AbsMean(_ColumnStatistic):
    """E|x|, the mean absolute input, (in,)."""

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        self._add(torch.bincount(x, minlength=len(self.total)) if x.ndim == 1 else precise(x).abs().sum(0))


class AbsMax(_ColumnStatistic):
    """max |x|, the largest absolute input, (in,); merging takes the larger."""

    def update(self, x: Inputs) -> None:
        self.count += len(x)
        if x.ndim == 1:
            self.total[x.unique()] = 1.0
        elif len(x):
            self.total = torch.maximum(self.total, x.abs().amax(0).to(self.total))

    def merge(self, other: "Statistic") -> None:
        self.total = torch.maximum(self.total, other.total.to(self.total.device))
        self.count += other.count

    def gather(self) -> None:
        self.total = processes.all_reduce_max(self.total)

    @property
    def vector(self) -> Float[Tensor, " in"]:
        return self.total


class GradCovariance(GradientStatistic):
    """F = Σ g g^T / predictions, the uncentred covariance of the gradients at the outputs.

    (out, out), or its diagonal (out,) above FULL_MOMENT_LIMIT outputs.
    """

    reads_inputs = False

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "GradCovariance":
        out_features = shape[0]
        size = (out_features,) if out_features > FULL_MOMENT_LIMIT else (out_features, out_features)
        return cls(torch.zeros(size, dtype=torch.float64, device=device))

    def update(self, x: SequenceInputs | None, g: Gradients) -> None:
        g = precise(g).reshape(-1, g.shape[-1])
        if self.total.ndim == 1:
            self._add(g.square().sum(0))
        else:
            add_gram(self.total, g)

    @classmethod
    def concatenate(cls, parts: Sequence[GradientStatistic]) -> "GradCovariance":
        # Gradients of different matrices are taken as uncorrelated: one block each.
        totals = [part.total for part in parts]
        diagonal = any(total.ndim == 1 for total in totals)
        blocks = [total.diagonal() if diagonal and total.ndim == 2 else total for total in totals]
        return cls.from_total(torch.cat(blocks) if diagonal else torch.block_diag(*blocks), parts[0].count)

    @property
    def matrix(self) -> OutputMoment:
        """F, (out, out), or its diagonal (out,)."""
        return self._mean() if self.total.ndim == 1 else symmetrize(self.total).div_(self.count or 1)


class Fisher(GradientStatistic):
    """Φ = Σ_sequences (Σ_t g_t x_t^T)² / predictions, element-wise: (out, in)."""

    reads_inputs = True

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "Fisher":
        return cls(torch.zeros(shape, dtype=torch.float64, device=device))

    def update(self, x: SequenceInputs | None, g: Gradients) -> None:
        assert x is not None
        g = precise(g)
        lookup = not x.is_floating_point()
        sequences = x.reshape(-1, x.shape[-1]) if lookup else precise(x).reshape(-1, *x.shape[-2:])
        gradients = g.reshape(len(sequences), -1, g.shape[-1])
        if lookup:
            for tokens, g_row in zip(sequences, gradients, strict=True):
                self._look_up(tokens, g_row)
            return
        self._add(sum_squared_products(zip(gradients, sequences, strict=True)))

    def _look_up(self, tokens: Int[Tensor, " tokens"], g: Float[Tensor, "tokens out"]) -> None:
        seen, place = tokens.unique(return_inverse=True)
        gradient = g.new_zeros(len(seen), g.shape[1]).index_add_(0, place, g)
        self.total[:, seen] += gradient.T.square().to(self.total)

    @classmethod
    def concatenate(cls, parts: Sequence[GradientStatistic]) -> "Fisher":
        return cls.from_total(torch.cat([part.total for part in parts]), parts[0].count)

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """Φ, (out, in)."""
        return self._mean()


STATISTICS: tuple[type[Statistic], ...] = (InputCovariance, Mean, AbsMean, AbsMax, GradCovariance, Fisher)
"""Every statistic that a method may need."""
