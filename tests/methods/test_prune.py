"""Pruning methods: the number of zeros, their order, and the update of the other weights."""

from dataclasses import replace

import pytest
import torch

from laconic.allocate import allocate_uniform
from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.methods import (
    KfacPrune,
    LnStructured,
    Magnitude,
    Random,
    RandomStructured,
    SparseGpt,
    UnstructuredPruning,
    Wanda,
)
from laconic.methods.prune.base import PruningMethod
from laconic.methods.prune.data_free import StructuredPruning
from tests.matrices import CASES, Case, case, stats_of

SCORED: tuple[UnstructuredPruning, ...] = (
    Magnitude(),
    Random(),
    Wanda(),
    Wanda(gradients=True, within="matrix"),
    SparseGpt(),
    SparseGpt(gradients=True),
    SparseGpt(within="row"),
    KfacPrune(),
    KfacPrune(score="obs"),
    KfacPrune(score="obd"),
    KfacPrune(gradients=False),
    KfacPrune(coupled=False),
    KfacPrune(refit=False, within="row"),
)
LINES: tuple[StructuredPruning, ...] = (
    LnStructured(),
    LnStructured(dim=1, n=1),
    LnStructured(n="inf"),
    RandomStructured(),
    RandomStructured(dim=1),
)


def shown(value: object) -> str | None:
    return repr(value) if isinstance(value, PruningMethod) else None


every_scored = pytest.mark.parametrize("method", SCORED, ids=shown)
every_method = pytest.mark.parametrize("method", [*SCORED, *LINES], ids=shown)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def mask_of(method: PruningMethod, matrix: Case) -> torch.Tensor:
    mask = method.compress(matrix.weight, matrix.stats).support
    assert mask is not None
    return mask


def pruned_before(matrix: Case, fraction: float = 0.3) -> Case:
    """The same matrix with zeros that an earlier step chose."""
    support = torch.rand(matrix.weight.shape, generator=torch.Generator().manual_seed(3)) >= fraction
    return Case(matrix.name, matrix.weight * support, LayerStats(list(matrix.stats), support))


@every_scored
@every_case
@pytest.mark.parametrize("sparsity", [0.13, 0.5, 0.9])
def test_it_leaves_exactly_as_many_zeros_as_asked_for(method: UnstructuredPruning, case: Case, sparsity: float) -> None:
    m, n = case.weight.shape
    zeros = ~mask_of(method.with_sparsity(sparsity), case)
    if method.within == "row":
        assert (zeros.sum(1) == round(sparsity * n)).all()
    else:
        assert zeros.sum() == round(sparsity * m * n)


@every_scored
def test_counts_are_exact_where_all_weights_and_all_inputs_are_equal(method: UnstructuredPruning) -> None:
    stats = stats_of(torch.eye(16).repeat(4, 1), torch.ones(64, 12))
    matrix = Case("equal", torch.full((12, 16), 0.5), stats)
    assert (~mask_of(method.with_sparsity(0.375), matrix)).sum() == 72
    groups = mask_of(replace(method, pattern="3:8"), matrix).view(-1, 8)
    assert (groups.sum(1) == 3).all()


@every_scored
@every_case
@pytest.mark.parametrize("pattern", ["2:4", "3:8"])
def test_a_pattern_keeps_n_of_every_m(method: UnstructuredPruning, case: Case, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    format = replace(method, pattern=pattern).compress(case.weight, case.stats)
    assert (format.mask.view(-1, m).sum(1) == n).all()
    assert format.pattern == (n, m)
    assert torch.isfinite(format.dense()).all()


@every_method
@every_case
def test_zeros_of_an_earlier_step_stay_and_count(method: PruningMethod, case: Case) -> None:
    before = pruned_before(case)
    support = before.stats.support
    for sparsity in (0.0, 0.1, 0.6):
        format = method.with_sparsity(sparsity).compress(before.weight, before.stats)
        assert not (format.mask & ~support).any()
        assert not format.dense()[~support].any()
        if isinstance(method, UnstructuredPruning) and method.within == "matrix":
            assert (~format.mask).sum() == max(round(sparsity * support.numel()), int((~support).sum()))
        if isinstance(method, UnstructuredPruning):
            pattern = replace(method.without_size(), pattern="2:4").compress(before.weight, before.stats)
            assert not (pattern.mask & ~support).any()


@every_method
@every_case
def test_a_sparsity_of_zero_is_the_matrix_itself(method: PruningMethod, case: Case) -> None:
    assert torch.equal(method.with_sparsity(0.0).compress(case.weight, case.stats).dense(), case.weight)
    before = pruned_before(case)
    assert torch.equal(method.with_sparsity(0.0).compress(before.weight, before.stats).dense(), before.weight)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(method: PruningMethod, value: float) -> None:
    matrix = case("broken", (24, 40))
    weight = matrix.weight.clone()
    weight[3, 5] = value
    with pytest.raises(UserError, match="cannot prune weights that are NaN or infinite; check the model"):
        method.with_sparsity(0.5).compress(weight, matrix.stats)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (5, 7)])
def test_a_fraction_of_bytes_is_met_as_nearly_as_it_can_be(
    method: PruningMethod, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    matrix = case("bytes", shape, dtype=dtype)
    dense = matrix.weight.numel() * dtype.itemsize
    for keep in (0.8, 0.5, 0.3):
        sized = method.with_keep(keep, shape, dtype)
        nbytes = sized.compress(matrix.weight, matrix.stats).nbytes()
        assert nbytes <= keep * dense
        # Another weight, row or column would be too much; a mask is whole bytes.
        assert nbytes + (method.granularity(shape) + 1) * dtype.itemsize > keep * dense


@every_method
def test_less_than_the_mask_takes_gives_the_smallest_size_and_is_refused_in_a_plan(method: PruningMethod) -> None:
    smallest = method.with_keep(0.03, (24, 40))
    matrix = case("tiny", (24, 40))
    assert mask_of(smallest, matrix).sum() == method.granularity((24, 40))
    assert method.with_keep(0.06, (24, 40), torch.float16) == smallest
    with pytest.raises(UserError, match=r"keep must be more than 0.03125, which the masks of .* take"):
        allocate_uniform(method, {"a": (24, 40)}, 0.03)
    with pytest.raises(UserError, match=r"keep must be more than 0\.0625, which"):
        allocate_uniform(method, {"a": (24, 40)}, 0.06, torch.float16)


@every_method
def test_its_ladder_begins_where_an_earlier_step_ended(method: PruningMethod) -> None:
    before = pruned_before(case("ladder", (24, 40)))
    *candidates, stays = method.candidates(before.weight, before.stats).all
    support = before.stats.support
    assert stays.method is None
    assert stays.parameters == support.sum()
    assert stays.nbytes == 4 * int(support.sum()) + 24 * 40 // 8
    assert [candidate.nbytes for candidate in candidates] == sorted({candidate.nbytes for candidate in candidates})
    for candidate in candidates:
        format = candidate.method.compress(before.weight, before.stats)
        assert (candidate.nbytes, candidate.parameters) == (format.nbytes(), int(format.mask.sum()))
        assert candidate.nbytes < stays.nbytes
        assert candidate.products == ((24, 40),)


@every_scored
def test_inputs_that_are_never_active_go_first(method: UnstructuredPruning) -> None:
    if isinstance(method, (Magnitude, Random)):
        pytest.skip("looks at no input")
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(200, 40, generator=generator), torch.randn(200, 24, generator=generator)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[5:15] = True
    x[:, dead] = 0
    weight = torch.randn(24, 40, generator=generator)
    weight[:, dead] *= 100
    matrix = Case("dead", weight, stats_of(x, g))
    fewer, more = mask_of(method.with_sparsity(0.2), matrix), mask_of(method.with_sparsity(0.5), matrix)
    assert fewer[:, ~dead].all()
    assert not more[:, dead].any()
