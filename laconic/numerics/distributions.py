"""Distributions that the outputs of a model parametrize: a categorical, independent Bernoullis, or a Gaussian.

Outputs z, (predictions, k), are parameters of a distribution p(y | z):

    Categorical   logits of k classes; y is the class                     p = softmax(z)
    Bernoulli     logits of k independent labels; y has a 0 or 1 for each p = sigmoid(z)
    Gaussian      the mean of k real numbers                              y ~ N(z, I)

A logit of −∞ excludes a class: it has the probability 0. Each has a KL divergence in nats, a loss −log p(y | z), and a
Fisher information F(z) = E_y[∇ log p ∇ log p^T]: diag(p) − p p^T, diag(p (1 − p)) and I (J. Martens, arXiv 1412.1193,
section 9).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Values = Float[Tensor, "n k"]


class Distribution(ABC):
    """A family of distributions over predictions, whose parameters are the outputs of a model.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> CATEGORICAL.divergence(logits, torch.zeros(2, 2))
        tensor([0.0000, 0.3278])
        >>> CATEGORICAL.loss(logits, torch.tensor([0, 1]))
        tensor([0.6931, 2.1269])
    """

    @abstractmethod
    def divergence(self, reference: Values, other: Values, temperature: float = 1.0) -> Float[Tensor, " n"]:
        """τ² KL(reference^τ ‖ other^τ) of each prediction, in nats.

        Args:
            reference: outputs of the reference model.
            other: outputs of the other model.
            temperature: τ, by which logits are divided. The factor τ² keeps the size of the gradient (G. Hinton et al.,
                2015, arXiv 1503.02531, section 2). For Gaussians it has no effect.
        """

    @abstractmethod
    def loss(self, values: Values, labels: Tensor) -> Float[Tensor, " n"]:
        """−log p(labels | values) of each prediction in nats, without terms that do not depend on the values.

        Args:
            values: outputs of the model.
            labels: (n,) class numbers of a categorical; (n, k) for the others, or (n,) where k is 1.
        """

    @abstractmethod
    def draw(self, values: Values, generator: torch.Generator) -> Tensor:
        """Labels drawn from the distributions, as `loss` takes them."""

    @abstractmethod
    def fisher_factor(self, values: Values) -> Iterator[Values]:
        """The columns of L with L L^T = F(values), each as (n, k), without gradients."""

    @abstractmethod
    def same_decision(self, reference: Values, other: Values) -> Bool[Tensor, " n"]:
        """Whether both outputs lead to the same decision, for each prediction."""

    @abstractmethod
    def describe(self, size: int) -> str:
        """A description of `size` outputs in a few words, for messages: "one of 3 classes, tokens or choices"."""


class Categorical(Distribution):
    """One of k classes, tokens or choices; those with a logit of −∞ are excluded.

    Example:
        >>> CATEGORICAL.same_decision(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 9.0]])).tolist()
        [True]
    """

    def divergence(self, reference: Values, other: Values, temperature: float = 1.0) -> Float[Tensor, " n"]:
        log_p, log_q = ((values / temperature).log_softmax(-1) for values in (reference, other))
        # An excluded class has p = 0 and adds nothing, but (−∞) − (−∞) is not a number.
        ratios = torch.where(log_p.isneginf(), 0.0, log_p - log_q)
        return temperature**2 * (log_p.exp() * ratios).sum(-1)

    def loss(self, values: Values, labels: Tensor) -> Float[Tensor, " n"]:
        return functional.cross_entropy(values, labels.long(), reduction="none")

    def draw(self, values: Values, generator: torch.Generator) -> Tensor:
        probabilities = values.detach().float().softmax(-1).cpu()
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(values.device)

    def fisher_factor(self, values: Values) -> Iterator[Values]:
        p = values.detach().double().softmax(-1)
        variances, directions = torch.linalg.eigh(p.diag_embed() - p[:, :, None] * p[:, None, :])
        L = (directions * variances.clamp(min=0).sqrt()[:, None, :]).to(values)
        # The null vector of F is constant. Its eigenvalue, 0, comes first.
        yield from L.unbind(-1)[1:]

    def same_decision(self, reference: Values, other: Values) -> Bool[Tensor, " n"]:
        """Whether the likeliest class is the same."""
        return reference.argmax(-1) == other.argmax(-1)

    def describe(self, size: int) -> str:
        return f"one of {size} classes, tokens or choices"


class Bernoulli(Distribution):
    """k independent labels.

    Example:
        >>> BERNOULLI.loss(torch.zeros(1, 2), torch.tensor([[0, 1]]))
        tensor([1.3863])
    """

    def divergence(self, reference: Values, other: Values, temperature: float = 1.0) -> Float[Tensor, " n"]:
        a, b = reference / temperature, other / temperature
        positive = a.sigmoid() * (functional.logsigmoid(a) - functional.logsigmoid(b))
        negative = (-a).sigmoid() * (functional.logsigmoid(-a) - functional.logsigmoid(-b))
        return temperature**2 * (positive + negative).sum(-1)

    def loss(self, values: Values, labels: Tensor) -> Float[Tensor, " n"]:
        targets = labels.to(values).view_as(values)
        return functional.binary_cross_entropy_with_logits(values, targets, reduction="none").sum(-1)

    def draw(self, values: Values, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(values.detach().float().sigmoid().cpu(), generator=generator).to(values)

    def fisher_factor(self, values: Values) -> Iterator[Values]:
        p = values.detach().double().sigmoid()
        yield from (p * (1 - p)).sqrt().to(values).diag_embed().unbind(-1)

    def same_decision(self, reference: Values, other: Values) -> Bool[Tensor, " n"]:
        """Whether every label is on the same side of a probability of one half."""
        return ((reference > 0) == (other > 0)).all(-1)

    def describe(self, size: int) -> str:
        return f"which of {size} labels hold"


class Gaussian(Distribution):
    """k real numbers.

    Example:
        >>> GAUSSIAN.divergence(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([1.])
    """

    GRADE = 0.2
    """One grade of STS-B on the scale that its models predict (0 to 1)."""

    def divergence(self, reference: Values, other: Values, temperature: float = 1.0) -> Float[Tensor, " n"]:
        return 0.5 * (reference - other).square().sum(-1)

    def loss(self, values: Values, labels: Tensor) -> Float[Tensor, " n"]:
        return 0.5 * (values - labels.to(values).view_as(values)).square().sum(-1)

    def draw(self, values: Values, generator: torch.Generator) -> Tensor:
        noise = torch.randn(values.shape, generator=generator)
        return values.detach() - noise.to(values)

    def fisher_factor(self, values: Values) -> Iterator[Values]:
        yield from torch.ones_like(values).diag_embed().unbind(-1)

    def same_decision(self, reference: Values, other: Values) -> Bool[Tensor, " n"]:
        """Whether every number rounds to the same fifth."""
        return ((reference / self.GRADE).round() == (other / self.GRADE).round()).all(-1)

    def describe(self, size: int) -> str:
        return f"{size} real numbers"


CATEGORICAL, BERNOULLI, GAUSSIAN = Categorical(), Bernoulli(), Gaussian()
