"""Losses of distillation against values worked out by hand or by loops, with padding that counts nowhere."""

import pytest
import torch

from laconic.numerics.distillation import (
    attention_cross_entropy,
    attention_mse,
    fsp_matrix,
    gram_mse,
    hidden_cosine,
    hidden_mse,
    relation_divergence,
)

MASK = torch.tensor([[True, True, True], [True, True, False]])


def states(seed: int, width: int = 4) -> torch.Tensor:
    return torch.randn(2, 3, width, generator=torch.Generator().manual_seed(seed))


def maps(seed: int, heads: int = 2) -> torch.Tensor:
    scores = torch.randn(2, heads, 3, 3, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~MASK[:, None, None], -torch.inf).softmax(-1)


def test_hidden_states_leave_padding_out() -> None:
    teacher, student = states(0), states(1)
    expected = torch.cat([(teacher - student)[0], (teacher - student)[1, :2]])
    assert hidden_mse(teacher, student, MASK).item() == pytest.approx(expected.square().mean().item(), rel=1e-6)
    student[1, 2] = 1e6
    assert hidden_mse(teacher, student, MASK).item() == pytest.approx(expected.square().mean().item(), rel=1e-6)
    assert hidden_cosine(teacher, 3 * teacher, MASK).item() == pytest.approx(0, abs=1e-6)
    assert hidden_cosine(teacher, -teacher, MASK).item() == pytest.approx(2, rel=1e-6)


def test_products_of_two_layers_need_no_equal_width() -> None:
    first, second = states(0, 2), states(1, 2)
    assert fsp_matrix(first, second)[0, 1, 2].item() == pytest.approx((first[0, 1] @ second[0, 2]).item() / 2, rel=1e-6)
    student = fsp_matrix(states(2, 5), states(3, 5))
    teacher = fsp_matrix(first, second)
    pairs = [(0, i, j) for i in range(3) for j in range(3)] + [(1, i, j) for i in range(2) for j in range(2)]
    expected = sum((teacher[at] - student[at]).item() ** 2 for at in pairs) / len(pairs)
    assert gram_mse(teacher, student, MASK).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("heads", [2, 4])
def test_attention_maps_of_real_tokens(heads: int) -> None:
    teacher, student = maps(0), maps(1, heads)
    alike = (teacher, student) if heads == 2 else (teacher.mean(1, keepdim=True), student.mean(1, keepdim=True))
    squares, entropies = [], []
    for row, count in ((0, 3), (1, 2)):
        for theirs, ours in zip(alike[0][row], alike[1][row], strict=True):
            for query in range(count):
                squares += [(theirs[query, key] - ours[query, key]).item() ** 2 for key in range(count)]
                entropies.append(-sum((theirs[query, key] * ours[query, key].log()).item() for key in range(count)))
    assert attention_mse(teacher, student, MASK).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    expected = sum(entropies) / len(entropies)
    assert attention_cross_entropy(teacher, student, MASK).item() == pytest.approx(expected, rel=1e-5)


def test_relations_by_loops() -> None:
    teacher, student, heads = states(0, 4), states(1, 6), 2
    terms = []
    for row, count in ((0, 3), (1, 2)):
        for head in range(heads):
            log = []
            for values in (teacher, student):
                size = values.shape[-1] // heads
                V = values[row, :count, head * size : (head + 1) * size]
                log.append((V @ V.T / size**0.5).log_softmax(-1))
            terms += (log[0].exp() * (log[0] - log[1])).sum(-1).tolist()
    loss = relation_divergence(teacher, student, heads, MASK).item()
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert relation_divergence(teacher, teacher, heads, MASK).item() == pytest.approx(0, abs=1e-6)


def test_padding_sends_no_gradient_that_is_no_number() -> None:
    student = states(1).requires_grad_()
    relation_divergence(states(0), student, 2, MASK).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[1, 2].any()
