"""Predictions of the next token by an engine: all logits, or the likeliest tokens only.

If only the likeliest tokens are known, the KL divergence is bounded from below. Let S be the tokens that both models
list at a position, and "other" stand for all tokens outside of S:

    KL_S = Σ_{t ∈ S} p(t) log(p(t) / q(t)) + p(other) log(p(other) / q(other)),  p(other) = 1 − Σ_{t ∈ S} p(t)

By the log-sum inequality (Cover and Thomas, Elements of Information Theory, theorem 2.7.1) KL_S ≤ KL(p ‖ q). It is
equal if S has all tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.numerics.softmax_kl import negative_log_likelihood, softmax_kl

SMALLEST = 1e-12
"""The smallest probability of all other tokens; below it, the sum of the listed ones is 1 up to rounding."""


class Distributions(ABC):
    """The distributions of the next token at consecutive positions of a text."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of positions."""

    @abstractmethod
    def nats(self, targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """−log p of the tokens that follow, in float64.

        Args:
            targets: the token after each position.
        """

    @abstractmethod
    def best(self) -> Int[Tensor, " n"]:
        """The likeliest token after each position."""

    @abstractmethod
    def kl_from(self, reference: "Distributions") -> Float[Tensor, " n"]:
        """KL(reference ‖ this) at each position, in nats and float64; or a lower bound of it.

        Args:
            reference: distributions of the same kind, at the same positions.
        """


@dataclass(frozen=True)
class Logits(Distributions):
    """All logits.

    Args:
        values: finite logits.

    Example:
        >>> flat, sure = Logits(torch.zeros(1, 2)), Logits(torch.tensor([[2.0, 0.0]]))
        >>> flat.kl_from(sure), sure.best(), flat.nats(torch.tensor([1]))
        (tensor([0.3278], dtype=torch.float64), tensor([0]), tensor([0.6931], dtype=torch.float64))
    """

    values: Float[Tensor, "n vocabulary"]

    def __len__(self) -> int:
        return len(self.values)

    def nats(self, targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return negative_log_likelihood(self.values, targets)

    def best(self) -> Int[Tensor, " n"]:
        return self.values.argmax(-1)

    def kl_from(self, reference: Distributions) -> Float[Tensor, " n"]:
        assert isinstance(reference, Logits), "the reference runs in the same engine"
        return softmax_kl(reference.values, self.values)


@dataclass(frozen=True)
class LikeliestTokens(Distributions):
    """The log-probabilities of the likeliest tokens, and of the token that follows.

    Args:
        tokens: the listed tokens: first the one that follows, then the likeliest in falling order. The first may be
            among them.
        log_p: their log-probabilities in float64.

    Example:
        >>> found = LikeliestTokens(torch.tensor([[7, 3, 7]]), torch.tensor([[0.25, 0.5, 0.25]]).double().log())
        >>> other = LikeliestTokens(torch.tensor([[7, 9, 3]]), torch.tensor([[0.25, 0.5, 0.25]]).double().log())
        >>> found.best(), other.kl_from(found)
        (tensor([3]), tensor([0.1733], dtype=torch.float64))
    """

    tokens: Int[Tensor, "n listed"]
    log_p: Float[Tensor, "n listed"]

    def __len__(self) -> int:
        return len(self.tokens)

    def nats(self, targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        assert torch.equal(self.tokens[:, 0], targets), "the engine was asked about these tokens"
        return -self.log_p[:, 0]

    def best(self) -> Int[Tensor, " n"]:
        return self.tokens[:, 1]

    def kl_from(self, reference: Distributions) -> Float[Tensor, " n"]:
        """As `Distributions.kl_from`: the lower bound KL_S."""
        assert isinstance(reference, LikeliestTokens), "the reference runs in the same engine"
        pairs = zip(reference._by_token(), self._by_token(), strict=True)
        return torch.tensor([_coarse_kl(p, q) for p, q in pairs], dtype=torch.float64)

    def _by_token(self) -> list[dict[int, float]]:
        """For each position, the log-probability of each listed token."""
        rows = zip(self.tokens.tolist(), self.log_p.tolist(), strict=True)
        return [dict(zip(tokens, values, strict=True)) for tokens, values in rows]


def _coarse_kl(p: dict[int, float], q: dict[int, float]) -> float:
    """KL_S at one position, from the log-probabilities of the listed tokens."""
    shared = sorted(p.keys() & q.keys())
    log_p, log_q = (torch.tensor([each[token] for token in shared], dtype=torch.float64) for each in (p, q))
    p_other, q_other = ((1 - each.exp().sum()).clamp(min=SMALLEST) for each in (log_p, log_q))
    kl = (log_p.exp() * (log_p - log_q)).sum() + p_other * (p_other / q_other).log()
    return max(float(kl), 0.0)
