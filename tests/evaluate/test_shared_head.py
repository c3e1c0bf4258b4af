"""Logits of a reference from the difference of states, where both models have the same head."""

import pytest
import torch
from torch.nn.functional import linear

from laconic.evaluate.halves import Head, divide
from laconic.evaluate.shared_head import find_shared_head
from laconic.numerics.softmax_kl import softmax_kl
from tests.evaluate.models import with_tokenizer

VOCABULARY, WIDTH = 500, 64


def head_of(name: str, changed: bool = False) -> Head:
    lm = with_tokenizer(name)
    if changed:
        embeddings = lm.model.get_output_embeddings()
        assert isinstance(embeddings, torch.nn.Linear)
        with torch.no_grad():
            embeddings.weight[0, 0] += 1
    head = divide(lm).head
    assert head is not None
    return head


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_the_logits_are_those_of_the_reference(name: str):
    shared = find_shared_head(head_of(name), head := head_of(name))
    assert shared is not None
    generator = torch.Generator().manual_seed(0)
    assert isinstance(head.output_embeddings, torch.nn.Linear)
    states, others = torch.randn(2, 5, head.output_embeddings.in_features, generator=generator)
    logits = head(states)
    assert torch.equal(shared.reference_logits(logits, states, states), logits)
    found, difference = shared.reference_logits(logits, states, others), head(states) - head(others)
    assert (found - head(others)).abs().max() < 2**-6 * difference.abs().max()


def test_heads_that_differ_or_cap_their_logits_are_not_shared():
    assert find_shared_head(head_of("llama"), head_of("llama", changed=True)) is None
    assert find_shared_head(head_of("gemma2"), head_of("gemma2")) is None


def test_heads_with_other_biases_are_not_shared():
    own, same, other = (with_bias(value) for value in (0.5, 0.5, 1.0))
    assert find_shared_head(own, same) is not None
    assert find_shared_head(own, other) is None
    assert find_shared_head(own, head_of("llama")) is None


def with_bias(value: float) -> Head:
    """A head whose logits all have this bias."""
    lm = with_tokenizer("llama")
    embeddings = lm.model.get_output_embeddings()
    assert isinstance(embeddings, torch.nn.Linear)
    embeddings.bias = torch.nn.Parameter(torch.full((embeddings.out_features,), value))
    head = divide(lm).head
    assert head is not None
    return head


def test_a_difference_in_bfloat16_keeps_the_divergence_and_rounded_logits_do_not():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(VOCABULARY, WIDTH, generator=generator)
    theirs = torch.randn(20, WIDTH, generator=generator)
    ours = theirs + 3e-3 * torch.randn(20, WIDTH, generator=generator)
    z, w = linear(theirs, W), linear(ours, W)
    exact = softmax_kl(z.double(), w.double()).mean()

    def product(x: torch.Tensor) -> torch.Tensor:
        return linear(x.bfloat16(), W.bfloat16()).float()

    by_difference = softmax_kl(w - product(ours - theirs), w).mean()
    rounded = softmax_kl(product(theirs), product(ours)).mean()
    assert by_difference == pytest.approx(exact.item(), rel=1e-2)
    assert rounded > 2 * exact
