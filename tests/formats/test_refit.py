"""Refitted formats have the least squared error that their zeros, codes and rank allow."""

import pytest
import torch
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import Codebook, Constant, Dense, Format, LowRank, LowRankReader, Sparse, Sum, split_rows
from laconic.methods import Int8, Rtn

SHAPE = (12, 20)


def moment() -> Tensor:
    X = torch.randn(64, SHAPE[1], generator=torch.Generator().manual_seed(1)).double()
    X = X @ torch.randn(20, 20, generator=torch.Generator().manual_seed(2)).double()
    return X.T @ X / 64


def matrix(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def loss(layer: Format, target: Tensor) -> float:
    E = target.double() - layer.dense().double()
    return (E @ moment() * E).sum().item()


def factors() -> tuple[Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(matrix(), full_matrices=False)
    return U[:, :5] * S[:5], Vh[:5]


def codebook(group: int | None) -> Codebook:
    tables = torch.tensor([-1.5, -0.4, 0.4, 1.5]).expand(1 if group is None else 12, 1 if group is None else 2, 4)
    return Codebook.from_codes((matrix()[..., None] - tables[0, 0]).abs().argmin(-1), tables, group)


FORMATS = {
    "dense": lambda: Dense.from_weight(matrix()),
    "low-rank": lambda: LowRank.from_factors(*factors()),
    "sparse": lambda: Sparse.from_dense(matrix(), matrix(3) > 0),
    "quantized": lambda: Rtn(bits=3, group_size=8).compress(matrix(), LayerStats()),
    "symmetric": lambda: Rtn(bits=4, group_size=8, symmetric=True).compress(matrix(), LayerStats()),
    "pruned codes": lambda: Rtn(bits=3, group_size=8).compress(
        matrix() * (matrix(3) > 0), LayerStats([], matrix(3) > 0)
    ),
    "codebook": lambda: codebook(10),
    "one table": lambda: codebook(None),
    "int8": lambda: Int8().compress(matrix(), LayerStats()),
    "sum": lambda: Sum.from_parts(
        Rtn(bits=2, group_size=8).compress(matrix(), LayerStats()), LowRank.from_factors(*factors())
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_it_comes_nearer_and_keeps_its_structure(kind: str) -> None:
    layer, target = FORMATS[kind](), matrix() + 0.3 * matrix(4)
    before, spec, nbytes, support = loss(layer, target), layer.spec(), layer.nbytes(), layer.support
    codes = {name: tensor.clone() for name, tensor in layer.named_parameters() if name.endswith(("codes", "zeros"))}
    layer.refit(target, moment())
    assert loss(layer, target) < before
    assert (layer.spec(), layer.nbytes()) == (spec, nbytes)
    assert all(torch.equal(layer.get_parameter(name), tensor) for name, tensor in codes.items())
    if support is not None:
        assert torch.equal(layer.support, support) and not layer.dense()[~support].any()
    if kind == "sum":
        # The two are moved in turn.
        return
    # Nothing is left to be gained.
    best = loss(layer, target)
    layer.refit(target, moment())
    assert loss(layer, target) == pytest.approx(best, rel=2e-2)


def test_the_output_factor_is_that_of_least_squares() -> None:
    layer, target = LowRank.from_factors(*factors()), matrix(4)
    right = layer.right.weight.clone()
    layer.refit(target, moment())
    root = torch.linalg.cholesky(moment())
    A = torch.linalg.lstsq((right.double() @ root).T, (target.double() @ root).T).solution.T
    assert torch.allclose(layer.left.weight.double(), A, atol=1e-4)
    assert torch.equal(layer.right.weight, right)


def test_values_on_a_mask_are_those_of_least_squares() -> None:
    mask, target = matrix(3) > 0, matrix(4)
    layer = Sparse.from_dense(matrix(), mask)
    layer.refit(target, moment())
    root = torch.linalg.cholesky(moment())
    for row in range(SHAPE[0]):
        kept = mask[row]
        z = torch.linalg.lstsq(root[kept].T, root.T @ target[row].double()).solution
        assert torch.allclose(layer.dense()[row, kept].double(), z, atol=1e-3)


def test_a_reader_moves_its_own_factor_alone() -> None:
    A, B = factors()
    owner, reader = split_rows(LowRank.from_factors(A, B), (7, 5))
    assert isinstance(reader, LowRankReader)
    first = owner.dense().clone()
    reader.refit(matrix(4)[7:], moment())
    assert torch.equal(owner.dense(), first)
    whole = LowRank.from_factors(A[7:], B)
    whole.refit(matrix(4)[7:], moment())
    assert torch.allclose(whole.dense(), reader.dense(), atol=1e-6)


def test_a_factor_that_is_a_format_keeps_its_own_structure() -> None:
    A, B = factors()
    layer, mask = LowRank.from_factors(A, B), torch.rand(12, 5, generator=torch.Generator().manual_seed(5)) > 0.4
    layer.left = Sparse.from_dense(A, mask)
    before = loss(layer, matrix())
    layer.refit(matrix(), moment())
    assert loss(layer, matrix()) < before
    assert not layer.left.dense()[~mask].any()


def test_int8_multiplies_by_the_scales_that_it_has_now() -> None:
    layer, x = FORMATS["int8"](), torch.randn(3, 20)
    with torch.no_grad():
        layer(x)
        layer.refit(2 * matrix(), moment())
        assert torch.allclose(layer(x), x @ layer.dense().T, atol=0.5)
    assert (layer.dense() / matrix()).median() == pytest.approx(2, rel=0.02)


def test_where_nothing_is_stored_nothing_moves() -> None:
    layer = Constant(*SHAPE, bias=False)
    layer.refit(matrix(), moment())
    assert not layer.dense().any()
