"""The base classes of statistics of one linear layer: of its inputs, and of the gradients at its outputs.

Notation: x (tokens, in) the inputs of a layer; g (tokens, out) the gradients at its outputs of the *sum* of the losses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic import processes

Inputs = Float[Tensor, "tokens in"] | Int[Tensor, " tokens"]
SequenceInputs = Float[Tensor, "*rows tokens in"] | Int[Tensor, "*rows tokens"]
Gradients = Float[Tensor, "*rows tokens out"]

Kind = TypeVar("Kind", bound="Statistic")
Shared = TypeVar("Shared")


class Statistic:
    """A tensor accumulated over tokens, usually a sum, and the count of tokens or predictions.

    `total` and `count` are the whole state: only they are merged, summed over processes and cached on disk. The tokens
    of an expert count as much as the square of their router's weight.

    `readers` is the number of matrices that have this statistic: those with the same input.

    Args:
        total: the tensor so far, in fp64.
    """

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self.count: int | float = 0
        self.readers = 1
        self._shared: dict[tuple[str, float], tuple[int, Any]] = {}

    @classmethod
    def from_total(cls: type[Kind], total: Tensor, count: int | float) -> Kind:
        """Build a statistic from `total` and `count`, as an earlier one had them."""
        statistic = cls(total)
        statistic.count = count
        return statistic

    def merge(self, other: "Statistic") -> None:
        """Add the statistic of the same layer from another shard, in place."""
        self.total = self.total + other.total.to(self.total.device)
        self.count += other.count

    def gather(self) -> None:
        """Combine `total` over all processes, by default by a sum; the caller sums the counts."""
        self.total = processes.all_reduce_sum(self.total)

    def share(self, name: str, compute: Callable[[], Shared]) -> Shared:
        """Return the result of `compute`, which all matrices with this statistic have in common.

        It is kept until as many matrices have asked for it as there are `readers`.

        Args:
            name: the result; it must contain everything that the result depends on besides this statistic.
            compute: called unless the result is kept.
        """
        key = (name, self.count)
        asked, result = self._shared.pop(key) if key in self._shared else (0, compute())
        if asked + 1 < self.readers:
            self._shared[key] = (asked + 1, result)
        return result

    def _mean(self) -> Tensor:
        return self.total / (self.count or 1)

    def _add(self, amount: Tensor) -> None:
        self.total += amount.to(self.total.device, torch.float64)


class InputStatistic(Statistic, ABC):
    """A statistic of the inputs, collected in the forward pass; `count` is the number of tokens."""

    @classmethod
    @abstractmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "InputStatistic":
        """Return the statistic before any token.

        Args:
            in_features: width of the inputs.
            lookup: the layer is a word embedding, whose inputs are token ids.
            device: the device of `total`.
        """

    @abstractmethod
    def update(self, x: Inputs) -> None:
        """Add the tokens of x, (tokens, in) without padding, or token ids (tokens,) for a word embedding."""


class GradientStatistic(Statistic, ABC):
    """A statistic of the gradients at the outputs; `count` is the number of predictions."""

    reads_inputs: ClassVar[bool]
    """True if `update` uses x, which must then be kept from the forward to the backward pass."""

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "GradientStatistic":
        """Return the statistic before any gradient.

        Args:
            shape: (out, in) of the matrix.
            device: the device of `total`.
        """

    @abstractmethod
    def update(self, x: SequenceInputs | None, g: Gradients) -> None:
        """Add one sequence, or several of equal length.

        Args:
            x: the inputs, (sequences, tokens, in); None unless `reads_inputs`.
            g: the gradients at the outputs, (sequences, tokens, out), zero at padding.
        """

    @classmethod
    @abstractmethod
    def concatenate(cls, parts: "Sequence[GradientStatistic]") -> "GradientStatistic":
        """Combine the statistics of matrices with the same input to that of the matrices concatenated along rows."""
