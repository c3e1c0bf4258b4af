"""Two formats added: better than either alone in as many bytes, by descent that never rises."""

import itertools
from dataclasses import replace

import pytest
import torch

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.formats import LowRank, PackedCodes, Sum
from laconic.methods import Gptq, Int8, KfacSvd, Magnitude, Method, Plus, Rtn, SparseGpt, Svd
from laconic.methods.registry import parse_method, to_config
from laconic.numerics.moments import quadratic_loss
from tests.matrices import Case, case

WIDE = case("plus", (48, 64))


def loss_of(method: Method, of: Case = WIDE) -> float:
    error = of.weight.double() - method.compress(of.weight, of.stats).dense().double()
    return quadratic_loss(error, of.stats[GradCovariance].matrix, of.stats[InputCovariance].matrix)


def test_what_is_left_of_the_base_is_made_up_for_in_closed_form() -> None:
    """One round, base first, factors as they are: S + SVD_r of W − S in the norm of F and C."""
    base, residual = Rtn(bits=3), KfacSvd(rank=4)
    result = Plus(base=base, residual=residual, rounds=1, factor_bits=None).compress(WIDE.weight, WIDE.stats)
    S = base.compress(WIDE.weight, WIDE.stats).dense()
    expected = S + residual.compress(WIDE.weight - S, WIDE.stats).dense()
    assert torch.allclose(result.dense(), expected, atol=1e-5)
    singular = Plus(base=base, residual=Svd(rank=4), rounds=1, factor_bits=None)
    assert loss_of(Plus(base=base, residual=residual, rounds=1, factor_bits=None)) < loss_of(singular)


@pytest.mark.parametrize("base", [Rtn(bits=2), SparseGpt(sparsity=0.6), Magnitude(pattern="2:4")], ids=lambda m: m.name)
@pytest.mark.parametrize("first", ["base", "residual"])
def test_every_round_lowers_the_loss_or_is_not_taken(base: Method, first) -> None:
    losses = [loss_of(Plus(base=base, residual=KfacSvd(rank=6), first=first, rounds=rounds)) for rounds in (1, 2, 3, 6)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(losses))
    assert losses[0] < loss_of(base)
    alternated = [loss_of(Plus(base=base, residual=KfacSvd(rank=6), first=first, rounds=r)) for r in (20, 40)]
    assert alternated[0] == alternated[1]


def test_the_parts_are_what_was_asked_for() -> None:
    result = Plus(base=SparseGpt(sparsity=0.75), residual=KfacSvd(rank=5)).compress(WIDE.weight, WIDE.stats)
    assert isinstance(result, Sum)
    sparse, low = result.parts
    assert sparse.support is not None
    assert int(sparse.support.sum()) == 48 * 64 // 4
    assert isinstance(low, LowRank)
    assert low.rank == 5
    assert isinstance(low.left, PackedCodes)
    assert low.left.bits == 8
    # Codes of a byte, and a scale for each row of either factor.
    assert low.nbytes() == 5 * (48 + 64) + 2 * (48 + 5)


@pytest.mark.parametrize("factor_bits", [None, 4, 8])
@pytest.mark.parametrize("keep", [0.12, 0.2, 0.4])
def test_at_a_fraction_of_bytes_the_base_leaves_room_for_the_rank(keep: float, factor_bits: int | None) -> None:
    for method in (Plus(factor_bits=factor_bits), Plus(base=Rtn(bits=2), factor_bits=factor_bits)):
        sized = method.with_keep(keep, (48, 64))
        result = sized.compress(WIDE.weight, WIDE.stats)
        assert result.nbytes() <= keep * 48 * 64 * 4
        assert isinstance(sized, Plus)
        assert isinstance(sized.residual, KfacSvd)
        rank = sized.residual.rank_of((48, 64))
        larger = replace(sized, residual=KfacSvd(rank=rank + 1))
        assert rank == 48 or larger.compress(WIDE.weight, WIDE.stats).nbytes() > keep * 48 * 64 * 4


def test_it_is_spelled_with_its_parts() -> None:
    method = Plus(base=SparseGpt(pattern="2:4"), residual=KfacSvd(rank=8), rounds=5)
    line = {"base": {"sparsegpt": {"pattern": "2:4"}}, "residual": {"kfac-svd": {"rank": 8}}, "rounds": 5}
    assert to_config(method) == {"plus": line}
    assert parse_method(to_config(method), "method") == method
    text = "plus:base={sparsegpt: {pattern: '2:4'}},residual={kfac-svd: {rank: 8}},rounds=5"
    assert parse_method(text, "method") == method
    assert parse_method("plus:base=rtn", "method") == Plus(base=Rtn())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"plus": {"base": "svd"}}, "plus.base must be a method that quantizes or prunes; got 'svd'"),
        ({"plus": {"residual": "rtn"}}, "plus.residual must be a low-rank method; got 'rtn'"),
        ({"plus": {"base": {"rtn": {"bits": 9}}}}, "compress.plus.base.rtn.bits must be in [2, 8]; got 9"),
        ({"plus": {"base": "rtm"}}, "did you mean"),
        ({"plus": {"factor_bits": 1}}, "plus.factor_bits must be in [2, 8]; got 1"),
        ({"plus": {"share": 1}}, "plus.share must be in (0, 1); got 1"),
        ({"plus": {"first": "both"}}, "plus.first must be"),
    ],
)
def test_a_mistake_is_one_sentence(line: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_method(line, "compress")
    assert said in str(error.value)


def test_no_size_and_no_number() -> None:
    with pytest.raises(UserError, match="plus needs a size"):
        Plus().compress(WIDE.weight, WIDE.stats)
    with pytest.raises(UserError, match="NaN"):
        Plus(base=Rtn(bits=2), residual=Svd(rank=1)).compress(WIDE.weight * float("nan"), WIDE.stats)


@pytest.mark.parametrize(
    "method",
    [
        Rtn(group_size=16),
        Int8(),
        Plus(base=SparseGpt(), residual=KfacSvd(rank=2)),
        Plus(base=Gptq(bits=4, sparsity=0.5), residual=KfacSvd(rank=2)),
    ],
    ids=["rtn", "dynamic-int8", "plus", "plus of codes"],
)
@pytest.mark.slow
def test_rungs_of_a_pruned_matrix_are_told_in_what_is_stored(method: Method) -> None:
    pruned = SparseGpt(sparsity=0.9).compress(WIDE.weight, WIDE.stats)
    weight = pruned.dense()
    offered = method.candidates(weight, LayerStats(WIDE.stats, pruned.support))
    *smaller, stays = offered.all
    assert (stays.method, stays.nbytes, stays.parameters) == (None, pruned.nbytes(), pruned.count)
    assert all(candidate.nbytes < stays.nbytes for candidate in smaller)
    for candidate in Plus(base=SparseGpt(), residual=KfacSvd(rank=2)).candidates(WIDE.weight, WIDE.stats).all[:3]:
        assert candidate.method is not None
        sparse, _ = candidate.method.compress(WIDE.weight, WIDE.stats).parts
        assert candidate.parameters == sparse.count + 2 * (48 + 64) < 48 * 64
