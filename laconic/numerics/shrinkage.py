"""Shrinkage of several estimates towards their mean, each by its own standard error.

R. DerSimonian, N. Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials 7 (1986), 177-188. The
estimates yᵢ have errors of variance sᵢ² and true values that vary by τ² about a mean μ. With wᵢ = 1 / sᵢ² and
Q = Σ wᵢ (yᵢ − ȳ)², where ȳ = Σ wᵢ yᵢ / Σ wᵢ,

    τ² = max(0, (Q − (k − 1)) / (Σ wᵢ − Σ wᵢ² / Σ wᵢ)),    μ = Σ yᵢ / (τ² + sᵢ²) / Σ 1 / (τ² + sᵢ²).

The best estimate of a true value is then μ + (yᵢ − μ) τ² / (τ² + sᵢ²) (empirical Bayes: B. Efron, C. Morris, JASA 68
(1973), 117-130). Where Q is no larger than chance makes it in one case of twenty, τ² is taken as 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SIGNIFICANT = 0.05


def shrink_estimates(y: Float[Tensor, " k"], s: Float[Tensor, " k"]) -> tuple[float, Float[Tensor, " k"]]:
    """The random-effects mean μ, and the shrunk estimates.

    Args:
        y: the figures.
        s: their standard errors; infinite where a figure says nothing.

    Returns:
        μ, and k figures between it and `y`; all are μ where the figures differ by chance alone.

    Example:
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.1]))
        (2.0, tensor([1.0050, 2.9950]))
        >>> shrink_estimates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        (2.0, tensor([2., 2.]))
    """
    s2 = s.square().clamp(min=1e-12 * y.square().mean().item() + 1e-300)
    w = 1 / s2
    around = y - (w * y).sum() / w.sum()
    Q = (w * around.square()).sum()
    k = len(y)
    chance = torch.special.gammaincc(torch.tensor((k - 1) / 2, dtype=Q.dtype), Q / 2) if k > 1 else torch.ones(())
    tau2 = torch.zeros_like(Q)
    if chance < SIGNIFICANT:
        tau2 = ((Q - (k - 1)) / (w.sum() - w.square().sum() / w.sum())).clamp(min=0)
    v = 1 / (tau2 + s2)
    mean = (v * y).sum() / v.sum()
    return mean.item(), mean + (y - mean) * tau2 / (tau2 + s2)
