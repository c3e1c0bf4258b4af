"""Codes and tables of values: what is stored, what comes out, and which zeros stay."""

import io

import pytest
import torch
from torch import Tensor

from laconic.formats import Codebook

OUT, IN = 6, 13
GROUPS = (None, IN, 5)


def parts(bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Random codes and tables."""
    generator = torch.Generator().manual_seed(bits)
    tables = (1, 1) if group is None else (OUT, -(-IN // group))
    values = torch.randn(*tables, 2**bits, generator=generator).half().float()
    return torch.randint(2**bits, (OUT, IN), generator=generator, dtype=torch.uint8), values


def looked_up(codes: Tensor, tables: Tensor, group: int | None) -> Tensor:
    """One by one."""
    W = torch.empty(OUT, IN)
    for i in range(OUT):
        for j in range(IN):
            table = tables[0, 0] if group is None else tables[i, j // group]
            W[i, j] = table[int(codes[i, j])]
    return W


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_is_looked_up_in_the_table_of_its_group(bits: int, group: int | None) -> None:
    codes, tables = parts(bits, group)
    layer = Codebook.from_codes(codes, tables, group)
    expected = looked_up(codes, tables, group)
    assert torch.equal(layer.dense(), expected)
    which = torch.tensor([12, 0, 7, 7])
    assert torch.equal(layer.decode_columns(which), expected[:, which])
    x = torch.randn(3, IN)
    torch.testing.assert_close(layer(x), x @ expected.T)
    assert layer.nbytes() == -(-OUT * IN * bits // 8) + 2 * tables.numel()


@pytest.mark.parametrize("group", GROUPS)
def test_pruned_weights_are_zero_whatever_the_tables_hold(group: int | None) -> None:
    codes, tables = parts(3, group)
    mask = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(0)) > 0.5
    layer = Codebook.from_codes(codes, tables, group, mask=mask)
    assert layer.support is not None and torch.equal(layer.support, mask)
    assert torch.equal(layer.dense(), torch.where(mask, looked_up(codes, tables, group), 0))
    kept = int(mask.sum())
    assert layer.nbytes() == -(-kept * 3 // 8) + -(-OUT * IN // 8) + 2 * tables.numel()


@pytest.mark.parametrize("group", GROUPS)
def test_it_comes_back_from_its_tensors_and_its_spec(group: int | None) -> None:
    codes, tables = parts(3, group)
    mask = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(0)) > 0.5
    for kept in (None, mask):
        layer = Codebook.from_codes(codes, tables, group, torch.float16, kept)
        layer.set_bias(torch.randn(OUT).half())
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        shell = Codebook.empty(**layer.spec()).half()
        shell.load_state_dict(torch.load(file))
        assert torch.equal(shell.dense(), layer.dense())
        assert shell.bias is not None and layer.bias is not None
        assert torch.equal(shell.bias, layer.bias)


def test_as_an_embedding_it_is_read_token_by_token() -> None:
    codes, tables = parts(4, IN)
    layer = Codebook.from_codes(codes, tables, IN)
    tokens = torch.tensor([[0, 12], [5, 5]])
    assert torch.equal(layer.to_embedding(None)(tokens), layer.dense().T[tokens])
