"""Each pruning method by hand and beside torch.nn.utils.prune."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.formats import Sparse
from laconic.methods import (
    KfacPrune,
    LnStructured,
    Magnitude,
    Random,
    RandomStructured,
    SparseGpt,
    Wanda,
)
from laconic.numerics.masks import keep_in_matrix, keep_in_rows
from laconic.numerics.moments import quadratic_loss
from tests.matrices import Case, case, stats_of
from tests.methods.test_prune import mask_of


def test_wanda_by_hand() -> None:
    """Inputs of norm 1, 2 and 10: |w| ‖x‖ is (3, 2, 1), (0.5, 6, 10)."""
    stats = stats_of(torch.diag(torch.tensor([1.0, 2.0, 10.0])), torch.tensor([[1.0, 0], [0, 10], [0, 0]]))
    matrix = Case("by hand", torch.tensor([[3.0, -1, 0.1], [-0.5, 3, 1]]), stats)
    assert torch.allclose(
        Wanda().scores(matrix.weight, stats) * 3**0.5, torch.tensor([[3.0, 2, 1], [0.5, 6, 10]]).double()
    )
    rows = Wanda(sparsity=0.34).compress(matrix.weight, stats).dense()
    assert torch.equal(rows, torch.tensor([[3.0, -1, 0], [0, 3, 1]]))
    matrix_wide = Wanda(sparsity=0.5, within="matrix").compress(matrix.weight, stats).dense()
    assert torch.equal(matrix_wide, torch.tensor([[3.0, 0, 0], [0, 3, 1]]))
    # With the Fisher information the second row counts a hundred times as much: its smallest beats the first's.
    fisher = Wanda(sparsity=0.5, within="matrix", gradients=True).compress(matrix.weight, stats).dense()
    assert torch.equal(fisher, torch.tensor([[0.0, 0, 0], [-0.5, 3, 1]]))


def test_the_statistics_asked_for_follow_the_parameters() -> None:
    assert (
        Wanda().required_statistics
        == SparseGpt().required_statistics
        == KfacPrune(gradients=False).required_statistics
        == {InputCovariance}
    )
    assert (
        Wanda(gradients=True).required_statistics
        == SparseGpt(gradients=True).required_statistics
        == KfacPrune().required_statistics
        == {InputCovariance, GradCovariance}
    )
    assert (
        Magnitude().required_statistics
        == Random().required_statistics
        == LnStructured().required_statistics
        == frozenset()
    )


@pytest.mark.parametrize("within", ["matrix", "row"])
def test_sparsegpt_with_independent_inputs_is_wanda(within: str) -> None:
    """A diagonal C: the scores are w² C_jj, in every block alike, and there is nothing to make up with."""
    generator = torch.Generator().manual_seed(1)
    stats = stats_of(torch.eye(300) * torch.rand(300, generator=generator), torch.ones(300, 20))
    matrix = Case("diagonal", torch.randn(20, 300, generator=generator), stats)
    found = SparseGpt(sparsity=0.6, within=within, damping=0.0).compress(matrix.weight, stats).dense()
    expected = Wanda(sparsity=0.6, within=within).compress(matrix.weight, stats).dense()
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found != 0, expected != 0)


def test_sparsegpt_makes_up_for_what_it_removes() -> None:
    matrix = case("made up", (30, 300), tokens=900)
    F = torch.ones(30)
    errors = [
        quadratic_loss(
            matrix.weight - replace(method, sparsity=0.5).compress(matrix.weight, matrix.stats).dense(),
            F,
            matrix.stats[InputCovariance].matrix,
        )
        for method in (SparseGpt(), Wanda(within="matrix"), Magnitude())
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.6 * errors[1]


def shrunk(F: torch.Tensor, alpha: float) -> torch.Tensor:
    """(1 − α) F + α tr(F)/m I."""
    F = F.double()
    return (1 - alpha) * F + alpha * F.trace() / len(F) * torch.eye(len(F), dtype=torch.float64)


@pytest.mark.parametrize("size", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
def test_sparsegpt_fits_what_its_sweep_keeps_for_the_whole_row(size: dict[str, float | str]) -> None:
    """The mask is the sweep's, and the loss of every row within a hundredth of its least on that mask."""
    matrix = case("fitted", (30, 300), tokens=900)
    C = matrix.stats[InputCovariance].matrix.double()
    H = C + 0.01 * C.diagonal().mean() * torch.eye(300, dtype=torch.float64)
    fitted, swept = (
        replace(SparseGpt(**size), refit=again).compress(matrix.weight, matrix.stats).dense() for again in (True, False)
    )
    assert torch.equal(fitted != 0, swept != 0)
    least = torch.zeros(30, 300, dtype=torch.float64)
    for z, w, kept in zip(least, matrix.weight.double(), fitted != 0, strict=True):
        z[kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ w)
    losses = [((E @ H) * E).sum(1) for E in (matrix.weight.double() - Z.double() for Z in (fitted, swept, least))]
    assert (losses[0] <= 1.01 * losses[2]).all()
    assert (losses[1] > 1.02 * losses[2]).all()


@pytest.mark.parametrize("within", ["matrix", "row"])
def test_sparsegpt_counts_the_zeros_of_a_block_by_what_its_columns_cost_from_left_to_right(within: str) -> None:
    """The columns left of column j are final, so [H^{-1}]_jj is that of the columns from j on."""
    matrix = case("counts", (20, 300), tokens=400)
    C = matrix.stats[InputCovariance].matrix.double()
    H = C + 0.01 * C.diagonal().mean() * torch.eye(300, dtype=torch.float64)
    spread = torch.stack([torch.linalg.inv(H[j:, j:])[0, 0] for j in range(300)])
    scores = matrix.weight.double().square() / spread
    lost = ~(keep_in_matrix if within == "matrix" else keep_in_rows)(scores, 0.7)
    found = ~mask_of(SparseGpt(sparsity=0.7, within=within), matrix)
    for block in (slice(0, 128), slice(128, 256), slice(256, 300)):
        counts = [mask[:, block].sum(1) if within == "row" else mask[:, block].sum() for mask in (found, lost)]
        assert torch.equal(*counts)


def test_kfac_prune_scores_are_the_two_formulas() -> None:
    matrix = case("scores", (24, 40), dtype=torch.float64)
    F, C = shrunk(matrix.stats[GradCovariance].matrix, 0.1), matrix.stats[InputCovariance].matrix
    obd = KfacPrune(score="obd").scores(matrix.weight, matrix.stats)
    assert torch.allclose(obd, 0.5 * matrix.weight.square() * F.diagonal()[:, None] * C.diagonal())
    damp = C + 0.02 * C.diagonal().mean() * torch.eye(40)
    obs = KfacPrune(score="obs", damping=0.02).scores(matrix.weight, matrix.stats)
    inverses = torch.linalg.inv(F).diagonal()[:, None] * torch.linalg.inv(damp).diagonal()
    assert torch.allclose(obs, 0.5 * matrix.weight.square() / inverses)


def test_kfac_prune_lies_between_the_two_by_the_sparsity() -> None:
    matrix = case("partial", (24, 40), dtype=torch.float64)

    def scores(**parameters: object) -> torch.Tensor:
        return KfacPrune(**parameters).scores(matrix.weight, matrix.stats)

    obs, obd = scores(score="obs"), scores(score="obd")
    assert torch.allclose(scores(sparsity=0.0), obs)
    # C is damped by a hundredth of its mean in one and not in the other.
    assert torch.allclose(scores(sparsity=1 - 1e-6, damping=1e-6), obd, rtol=1e-3)
    assert ((scores(sparsity=0.3) > obs) & (scores(sparsity=0.7) > scores(sparsity=0.3))).all()
    assert torch.allclose(scores(pattern="3:10"), scores(sparsity=0.7))
    assert torch.allclose(scores(), scores(sparsity=0.5))
    # Without the others' help a row is left with more.
    assert (scores(sparsity=0.5, coupled=False) > scores(sparsity=0.5)).all()


def test_an_obd_score_is_what_the_predicted_loss_rises_by() -> None:
    matrix = case("rise", (6, 8), dtype=torch.float64)
    F, C = shrunk(matrix.stats[GradCovariance].matrix, 0.1), matrix.stats[InputCovariance].matrix
    scores = KfacPrune(score="obd").scores(matrix.weight, matrix.stats)
    for i in range(6):
        for j in range(8):
            E = torch.zeros(6, 8, dtype=torch.float64)
            E[i, j] = matrix.weight[i, j]
            assert quadratic_loss(E, F, C) == pytest.approx(scores[i, j].item())


def test_the_refit_only_changes_values_and_lowers_what_it_says() -> None:
    """Fitted together, rows have the least loss that is weighed by F; each for itself, the least that is not."""
    matrix = case("refit", (24, 40))
    methods = (KfacPrune(), KfacPrune(coupled=False), KfacPrune(refit=False))
    together, apart, untouched = (
        replace(method, sparsity=0.6).compress(matrix.weight, matrix.stats) for method in methods
    )
    assert torch.equal(together.support, untouched.support)
    assert torch.equal(apart.support, untouched.support)
    assert torch.equal(untouched.dense()[untouched.support], matrix.weight[untouched.support])
    C = matrix.stats[InputCovariance].matrix

    def loss(format: Sparse, F: torch.Tensor) -> float:
        return quadratic_loss(matrix.weight - format.dense(), F, C)

    F, identity = shrunk(matrix.stats[GradCovariance].matrix, 0.1), torch.ones(24)
    assert loss(together, F) < loss(apart, F) < 0.8 * loss(untouched, F)
    assert loss(apart, identity) < loss(together, identity)


def torch_mask(method: prune.BasePruningMethod, matrix: Case) -> torch.Tensor:
    return method.compute_mask(matrix.weight, torch.ones_like(matrix.weight)).bool()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.85])
def test_masks_are_those_of_torch(sparsity: float) -> None:
    """With other scores in torch's hands where they are random."""
    matrix = case("torch", (24, 40))
    theirs = torch_mask(prune.L1Unstructured(sparsity), matrix)
    assert torch.equal(mask_of(Magnitude(sparsity=sparsity), matrix), theirs)
    layer = nn.Linear(40, 24)
    scores = Random().scores(matrix.weight, matrix.stats)
    prune.l1_unstructured(layer, "weight", sparsity, importance_scores=scores)
    assert torch.equal(mask_of(Random(sparsity=sparsity), matrix), layer.weight_mask.bool())


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.85])
def test_lines_are_those_of_torch(dim: int, sparsity: float) -> None:
    matrix = case("lines", (24, 40))
    for n in (1, 2, "inf"):
        theirs = torch_mask(prune.LnStructured(sparsity, float(n), dim), matrix)
        assert torch.equal(mask_of(LnStructured(sparsity=sparsity, n=n, dim=dim), matrix), theirs)
    mine = mask_of(RandomStructured(sparsity=sparsity, dim=dim), matrix)
    theirs = torch_mask(prune.RandomStructured(sparsity, dim), matrix)
    assert mine.all(1 - dim).sum() == theirs.all(1 - dim).sum() == mine.any(1 - dim).sum()


def test_random_zeros_follow_the_seed_and_the_matrix() -> None:
    first, second = case("first", (24, 40)), case("second", (24, 40))
    second = Case("second", second.weight + 1, second.stats)
    for method in (Random(sparsity=0.5), RandomStructured(sparsity=0.5)):
        assert torch.equal(mask_of(method, first), mask_of(method, first))
        assert not torch.equal(mask_of(method, first), mask_of(replace(method, seed=1), first))
        assert not torch.equal(mask_of(method, first), mask_of(method, second))


def test_lines_that_are_zero_already_go_first() -> None:
    matrix = case("zero rows", (24, 40))
    support = torch.ones(24, 40, dtype=torch.bool)
    support[2::5] = False
    stats = LayerStats(list(matrix.stats), support)
    for method in (LnStructured(sparsity=0.5), RandomStructured(sparsity=0.5)):
        mask = mask_of(method, Case("zero rows", matrix.weight * support, stats))
        assert mask.any(1).sum() == 12
        assert not mask[2::5].any()


def embedding() -> tuple[torch.Tensor, LayerStats]:
    """A word embedding: C is diagonal, and given as such."""
    generator = torch.Generator().manual_seed(2)
    gram = InputCovariance.empty(50, True, torch.device("cpu"))
    gram.update(torch.randint(0, 45, (400,), generator=generator))
    output = GradCovariance.empty((8, 50), torch.device("cpu"))
    mixing = torch.randn(8, 8, generator=generator)
    output.update(None, torch.randn(400, 8, generator=generator) @ mixing)
    output.count = 4
    return torch.randn(8, 50, generator=generator), LayerStats([gram, output])


def test_one_hot_inputs_lose_weights_and_nothing_else() -> None:
    weight, stats = embedding()
    uncoupled = (KfacPrune(coupled=False), KfacPrune(gradients=False))
    for method in (Wanda(), SparseGpt(), *uncoupled, KfacPrune(refit=False), LnStructured()):
        format = method.with_sparsity(0.5).compress(weight, stats)
        assert torch.equal(format.dense()[format.mask], weight[format.mask])
        assert all(candidate.products == () for candidate in method.candidates(weight, stats).all)


def test_the_outputs_of_one_hot_inputs_make_up_for_each_other_column_by_column() -> None:
    """min (w − z)^T F (w − z) of every column: F_KK z_K = F_K: w, solved one by one."""
    weight, stats = embedding()
    method = KfacPrune(sparsity=0.5)
    format = method.compress(weight, stats)
    F = shrunk(stats[GradCovariance].matrix, method.shrink)
    expected = torch.zeros(8, 50, dtype=torch.float64)
    for column, kept in enumerate(format.mask.T):
        if kept.any():
            expected[kept, column] = torch.linalg.solve(F[kept][:, kept], F[kept] @ weight[:, column].double())
    torch.testing.assert_close(format.dense().double(), expected, rtol=1e-4, atol=1e-5)
    left, C = weight * format.mask, stats[InputCovariance].matrix
    assert quadratic_loss(weight - format.dense(), F, C) < 0.95 * quadratic_loss(weight - left, F, C)


def test_a_weight_of_an_embedding_costs_what_its_score_says() -> None:
    """obs: ½ w² C_jj / [F^{-1}]_ii, which is the loss once the others of its column are at their best."""
    weight, stats = embedding()
    method = KfacPrune(score="obs", sparsity=1 / weight.numel(), shrink=1e-9, damping=1e-9)
    scores = method.scores(weight, stats)
    # Tokens that were never seen cost as good as nothing.
    seen = scores.masked_fill(stats[InputCovariance].matrix == 0, torch.inf)
    support = torch.ones_like(weight, dtype=torch.bool)
    i, j = divmod(int(seen.argmin()), weight.shape[1])
    support[i, j] = False
    result = method.compress(weight, LayerStats(stats, support))
    assert torch.equal(result.mask, support)
    error = weight.double() - result.dense().double()
    loss = quadratic_loss(error, stats[GradCovariance].matrix, stats[InputCovariance].matrix)
    assert loss == pytest.approx(scores[i, j].item(), rel=1e-3)
