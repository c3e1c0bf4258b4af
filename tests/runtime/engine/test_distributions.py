"""Distributions of which only the likeliest tokens are known give exact nats, and a lower bound of the divergence."""

import pytest
import torch
from torch import Tensor

from laconic.runtime.engine.distributions import LikeliestTokens, Logits

GENERATOR = torch.Generator().manual_seed(0)
P, Q = torch.randn(2, 6, 40, generator=GENERATOR, dtype=torch.float64).mul(2)
TARGETS = torch.randint(40, (6,), generator=GENERATOR)


def likeliest(logits: Tensor, listed: int) -> LikeliestTokens:
    """The predictions of an engine that lists only some tokens."""
    log_p = logits.log_softmax(-1)
    values, tokens = log_p.topk(listed)
    target = log_p.gather(1, TARGETS[:, None])
    return LikeliestTokens(torch.cat((TARGETS[:, None], tokens), 1), torch.cat((target, values), 1))


def exact() -> Tensor:
    """KL(P ‖ Q) of each row."""
    return (P.softmax(-1) * (P.log_softmax(-1) - Q.log_softmax(-1))).sum(-1)


def test_all_logits_give_the_divergence() -> None:
    assert torch.allclose(Logits(Q).kl_from(Logits(P)), exact())
    assert torch.equal(Logits(Q).best(), Q.argmax(-1))


@pytest.mark.parametrize("listed", [1, 4, 20, 39])
def test_some_tokens_give_a_lower_bound(listed: int) -> None:
    p, q = likeliest(P, listed), likeliest(Q, listed)
    found = q.kl_from(p)
    assert (found <= exact() + 1e-9).all() and (found >= 0).all()
    assert torch.allclose(q.nats(TARGETS), Logits(Q).nats(TARGETS))
    assert torch.equal(q.best(), Q.argmax(-1))
    assert torch.equal(p.kl_from(p), torch.zeros(6, dtype=torch.float64))


def test_all_tokens_give_the_divergence() -> None:
    assert torch.allclose(likeliest(Q, 40).kl_from(likeliest(P, 40)), exact(), atol=1e-9)


def test_more_tokens_bring_the_bound_nearer() -> None:
    bounds = [float(likeliest(Q, listed).kl_from(likeliest(P, listed)).sum()) for listed in (4, 16, 40)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1]
