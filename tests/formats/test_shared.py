"""One input factor for several layers: the same function as apart, multiplied by once, stored once."""

import copy

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats import Format, LowRank, LowRankReader, split_rows

ROWS, IN, RANK = (4, 4, 2), 9, 3


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tuple[Format, ...]]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(sum(ROWS), RANK, generator=generator, dtype=dtype)
    B = torch.randn(RANK, IN, generator=generator, dtype=dtype)
    return A, B, split_rows(LowRank.from_factors(A, B), ROWS)


class Counting(nn.Module):
    """A linear that counts its calls."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.calls = linear, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


def counting(owner: Format) -> Counting:
    assert isinstance(owner, LowRank)
    owner.right = Counting(owner.right)
    return owner.right


def test_the_parts_together_are_the_whole_and_stored_once() -> None:
    A, B, parts = made(torch.float16)
    torch.testing.assert_close(torch.cat([part.dense() for part in parts]), A @ B)
    assert [part.shape for part in parts] == [(rows, IN) for rows in ROWS]
    stored = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
    assert sum(part.nbytes() for part in parts) == stored == (sum(ROWS) + IN) * RANK * 2
    assert sum(part.macs() for part in parts) == (sum(ROWS) + IN) * RANK


def test_the_shared_factor_is_multiplied_by_once_for_each_input() -> None:
    A, B, parts = made()
    right = counting(parts[0])
    for repeat in range(3):
        x = torch.randn(2, 5, IN, dtype=torch.float64)
        outputs = [part(x) for part in parts]
        torch.testing.assert_close(torch.cat(outputs, -1), x @ (A @ B).T)
        assert right.calls == repeat + 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0, 2, 0)])
def test_any_order_and_number_of_calls_gives_the_same(order: tuple[int, ...]) -> None:
    A, B, parts = made()
    wholes = (A @ B).split(ROWS)
    first, second = (torch.randn(5, IN, dtype=torch.float64) for _ in range(2))
    for x in (first, second, first):
        for index in order:
            torch.testing.assert_close(parts[index](x), x @ wholes[index].T)


def test_gradients_reach_the_shared_factor_from_every_layer_even_after_a_call_without() -> None:
    A, B, parts = made()
    x = torch.randn(5, IN, dtype=torch.float64)
    with torch.no_grad():
        parts[0](x)
    torch.cat([part(x) for part in parts], -1).square().sum().backward()
    leaf = B.clone().requires_grad_()
    (x @ (A @ leaf).T).square().sum().backward()
    owner = parts[0]
    assert isinstance(owner, LowRank)
    torch.testing.assert_close(owner.right.weight.grad, leaf.grad)


def test_a_changed_input_is_not_taken_for_the_same() -> None:
    _, _, parts = made()
    x = torch.randn(5, IN, dtype=torch.float64)
    parts[0](x)
    x.mul_(2)
    torch.testing.assert_close(parts[1](x), x @ parts[1].dense().T)


def test_nothing_is_held_once_every_layer_has_asked() -> None:
    _, _, parts = made()
    x = torch.randn(5, IN, dtype=torch.float64)
    for part in parts:
        part(x)
    owner = parts[0]
    assert isinstance(owner, LowRank)
    assert owner._product._latest is None


def test_a_copy_of_the_model_reads_from_the_copy() -> None:
    _, _, parts = made()
    copied = copy.deepcopy(nn.ModuleList(parts))
    assert copied[1].source is copied[0]
    x = torch.randn(5, IN, dtype=torch.float64)
    copied[0].right.weight.data.zero_()
    assert not copied[1](x).any()
    assert parts[1](x).any()


def test_reading_from_what_has_no_factor_to_share_is_one_sentence() -> None:
    _, _, parts = made()
    with pytest.raises(UserError, match="reads from a 'low-rank'; got a 'low-rank-reader'"):
        LowRankReader(4, IN, RANK, bias=False).set_source(parts[1])
    with pytest.raises(UserError, match="cannot read from another layer"):
        parts[0].set_source(parts[0])
