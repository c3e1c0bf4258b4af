"""One test per method for the equation it implements, quoted from its paper, against an independent computation."""

import pytest
import scipy.linalg
import torch

from laconic.calibrate import AbsMean, Fisher, GradCovariance, InputCovariance
from laconic.methods import Asvd, Awq, Drone, Fwsvd, KfacSvd, KMeans, Method, Svd, Wlra
from laconic.numerics.moments import quadratic_loss
from tests.matrices import Case, case, stats_of

RANK = 7
SHAPES = [(24, 40), (40, 24), (32, 32)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def double(shape: tuple[int, int], tokens: int = 400) -> Case:
    """A well-conditioned case in fp64, so that identities hold to many digits."""
    return case("double", shape, tokens, torch.float64)


def approximation(method: Method, matrix: Case) -> torch.Tensor:
    return method.compress(matrix.weight, matrix.stats).dense()


def best_rank(W: torch.Tensor, rank: int = RANK) -> torch.Tensor:
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


def output_error(matrix: Case, W_hat: torch.Tensor) -> float:
    """‖(W − Ŵ) X‖² / tokens = tr(E C E^T)."""
    E = matrix.weight - W_hat
    return torch.einsum("ij,jk,ik->", E, matrix.stats[InputCovariance].matrix.double(), E).item()


def shrunk_gradients(matrix: Case) -> torch.Tensor:
    """0.9 F + 0.1 tr(F)/m I."""
    F = matrix.stats[GradCovariance].matrix.double()
    return 0.9 * F + 0.1 * F.trace() / len(F) * torch.eye(len(F), dtype=torch.float64)


def scipy_root(S: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.linalg.sqrtm(S.double().numpy()).real)


@every_shape
def test_svd_is_eckart_and_young(shape):
    matrix = double(shape)
    assert torch.allclose(approximation(Svd(rank=RANK), matrix), best_rank(matrix.weight), atol=1e-10)


@every_shape
def test_fwsvd_is_equation_8(shape):
    """Ŵ = SVD_r(W D) D^{-1} with D = diag(√Σ_i Φ_ij), columns being HF's input features."""
    matrix = double(shape)
    d = matrix.stats[Fisher].matrix.sum(0).sqrt()
    expected = best_rank(matrix.weight * d) / d
    assert torch.allclose(approximation(Fwsvd(rank=RANK), matrix), expected, atol=1e-8)


@every_shape
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_asvd_is_the_svd_of_the_scaled_matrix(shape, alpha):
    """Ŵ = SVD_r(W S) S^{-1}, S = diag((mean_t |x_j|)^α)."""
    matrix = double(shape)
    S = matrix.stats[AbsMean].vector ** alpha
    expected = best_rank(matrix.weight * S) / S
    assert torch.allclose(approximation(Asvd(rank=RANK, alpha=alpha), matrix), expected, atol=1e-8)


@every_shape
@pytest.mark.parametrize("solver", ["em", "nesterov", "anderson", "als"])
def test_wlra_is_a_fixed_point_of_srebro_and_jaakkola(shape, solver):
    """X = SVD_r(w∘W + (1 − w)∘X), where Σ Φ (W − X)² has no gradient: (Φ∘E) V = 0 and (Φ∘E)^T U = 0 for X = U S V^T."""
    matrix = double(shape)
    Phi = matrix.stats[Fisher].matrix
    U, s, Vt = torch.linalg.svd(approximation(Wlra(rank=RANK, solver=solver, iterations=2000), matrix))
    X = (U[:, :RANK] * s[:RANK]) @ Vt[:RANK]
    slope = Phi * (matrix.weight - X)
    assert (slope @ Vt[:RANK].T).norm() < 2e-2 * slope.norm()
    assert (slope.T @ U[:, :RANK]).norm() < 2e-2 * slope.norm()
    w = Phi / Phi.max()
    moved = best_rank(w * matrix.weight + (1 - w) * X) - X
    assert moved.norm() < 1e-4 * X.norm()


@every_shape
def test_drone_is_whitening_by_cholesky(shape):
    """min ‖W X − Ŵ X‖: C = L L^T, Ŵ = SVD_r(W L) L^{-1} (SVD-LLM's form)."""
    matrix = double(shape)
    L = torch.linalg.cholesky(matrix.stats[InputCovariance].matrix)
    expected = torch.linalg.solve_triangular(L, best_rank(matrix.weight @ L), upper=False, left=False)
    assert (approximation(Drone(rank=RANK), matrix) - expected).abs().max() < 1e-8


@every_shape
def test_drone_is_the_two_svds_of_theorem_1(shape):
    """W = U_W S_W V_W^T, X = U_X S_X V_X^T, Z = S_W V_W^T U_X S_X: Ŵ = W V_W S_W^{-1} Z_r S_X^{-1} U_X^T."""
    m, n = shape
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(n, 300, dtype=torch.float64, generator=generator)
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    matrix = Case("two svds", W, stats_of(X.T, torch.randn(300, m, dtype=torch.float64, generator=generator)))
    U_W, S_W, Vt_W = torch.linalg.svd(W, full_matrices=False)
    U_X, S_X, _ = torch.linalg.svd(X, full_matrices=False)
    Z = (S_W[:, None] * Vt_W) @ (U_X * S_X)
    expected = U_W @ best_rank(Z) @ ((1 / S_X)[:, None] * U_X.T)
    assert (approximation(Drone(rank=RANK), matrix) - expected).abs().max() < 1e-8


@every_shape
def test_drone_is_optimal_when_the_moment_is_singular(shape):
    """With fewer tokens than features Cholesky fails; Eckart-Young on W C^{1/2} says what the optimum is."""
    matrix = double(shape, tokens=12)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(matrix.stats[InputCovariance].matrix)
    C = matrix.stats[InputCovariance].matrix
    # The squared singular values of W C^{1/2}.
    squares = torch.linalg.eigvalsh(matrix.weight @ C @ matrix.weight.T).flip(0)
    W_hat = approximation(Drone(rank=RANK), matrix)
    assert torch.isfinite(W_hat).all()
    assert output_error(matrix, W_hat) == pytest.approx(squares[RANK:].sum().item(), rel=1e-8)


@every_shape
def test_kfac_svd_is_the_two_sided_whitening(shape):
    """Ŵ = F^{-1/2} SVD_r(F^{1/2} W C^{1/2}) C^{-1/2}, F shrunk by 0.1."""
    matrix = double(shape)
    P, R = scipy_root(shrunk_gradients(matrix)), scipy_root(matrix.stats[InputCovariance].matrix)
    expected = torch.linalg.inv(P) @ best_rank(P @ matrix.weight @ R) @ torch.linalg.inv(R)
    assert (approximation(KfacSvd(rank=RANK), matrix) - expected).abs().max() < 1e-8


def claimed_objective(method: Method, matrix: Case, W_hat: torch.Tensor) -> float:
    """The objective that the page of each method says that it minimises."""
    E = matrix.weight - W_hat
    if isinstance(method, Fwsvd):
        return (E.square() * matrix.stats[Fisher].matrix.sum(0)).sum().item()
    if isinstance(method, Wlra):
        return (matrix.stats[Fisher].matrix * E.square()).sum().item()
    if isinstance(method, Asvd):
        return (E * matrix.stats[AbsMean].vector ** method.alpha).square().sum().item()
    if isinstance(method, Drone):
        return output_error(matrix, W_hat)
    if isinstance(method, KfacSvd):
        F, C = shrunk_gradients(matrix), matrix.stats[InputCovariance].matrix
        return torch.einsum("hi,ij,jk,hk->", F, E, C.double(), E).item()
    return E.square().sum().item()


@every_shape
@pytest.mark.parametrize("tokens", [400, 12])
@pytest.mark.parametrize(
    "method",
    [Fwsvd(rank=RANK), Wlra(rank=RANK), Asvd(rank=RANK), Drone(rank=RANK), KfacSvd(rank=RANK)],
    ids=lambda method: method.name,
)
def test_each_method_beats_plain_svd_on_its_own_objective(method, shape, tokens):
    matrix = double(shape, tokens)
    own = claimed_objective(method, matrix, approximation(method, matrix))
    plain = claimed_objective(method, matrix, approximation(Svd(rank=RANK), matrix))
    assert own < plain * 0.999


def test_kmeans_is_equation_4():
    """min Σ_j Φ_ij (w_ij − Q(w_ij))²: every weight has the nearest value, and every value is a weighted mean."""
    matrix = case("values", (24, 40))
    dense = KMeans(bits=3, weights="fisher", refit=False).compress(matrix.weight, matrix.stats).dense()
    for w, phi, row in zip(matrix.weight, matrix.stats[Fisher].matrix, dense, strict=True):
        values = row.unique()
        assert torch.equal(row, values[(w[:, None] - values).abs().argmin(1)])
        for value in values:
            mine = row == value
            mean = (phi[mine] * w[mine]).sum() / phi[mine].sum()
            # Values are stored in 16 bits.
            assert value.item() == pytest.approx(mean.item(), rel=2e-3, abs=1e-4)


def test_awq_is_equations_4_and_5():
    """Ŵ = Q(W diag s)(diag s)^{-1} with s_j = (mean |x_j|)^a, the a of least loss among twenty."""
    matrix = case("scaled", (24, 40))
    F, C, x = (
        matrix.stats[GradCovariance].matrix,
        matrix.stats[InputCovariance].matrix,
        matrix.stats[AbsMean].vector.float(),
    )
    dense = Awq(bits=3, group_size=20, clip=False).compress(matrix.weight, matrix.stats).dense()
    results = []
    for i in range(20):
        s = x ** (i / 20) / (x.max() * x.min()) ** (i / 40)
        groups = (matrix.weight * s).view(24, 2, 20)
        low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
        step = (high - low) / 7
        zero = (-low / step).round()
        results.append((((groups / step).round() + zero).clamp(0, 7) - zero).mul(step).view(24, 40) / s)
    best = min(results, key=lambda W_hat: quadratic_loss(matrix.weight - W_hat, F, C))
    # Steps and scales are stored in 16 bits, so that single weights may be rounded to the other side.
    assert (dense - best).abs().gt(1e-2 * best.abs().max()).float().mean() < 0.01


def test_the_quadratic_loss_is_the_kronecker_form():
    """½ vec(E)^T (F ⊗ C) vec(E), row-major vec, by brute force."""
    matrix = double((5, 4), tokens=60)
    E, F, C = matrix.weight, matrix.stats[GradCovariance].matrix, matrix.stats[InputCovariance].matrix
    vec = E.reshape(-1)
    assert quadratic_loss(E, F, C) == pytest.approx((0.5 * vec @ torch.kron(F, C) @ vec).item())
