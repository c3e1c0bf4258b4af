"""Targets that pull errors back: least squares on drifted inputs, centred biases, and the residual stream."""

import pytest
import torch
from torch import Tensor

from laconic.calibrate import (
    Calibration,
    GradCovariance,
    InputCovariance,
    LayerStats,
    collect_stats,
    sequential_calibrate,
)
from laconic.calibrate.activation_capture import (
    ActivationCapture,
    Residual,
    find_residual,
    find_sublayers,
    paths_to_capture,
)
from laconic.calibrate.anchor import Anchor, Moments, choose_ridge, solve_anchored
from laconic.calibrate.sequential import SequentialConfig
from laconic.compress import Compress
from laconic.methods import Drone, KfacSvd
from laconic.model import LanguageModel, divergence, predict
from tests.architectures import BY_NAME, factors
from tests.calibrate.test_collect_stats import labelled_batches

CPU = torch.device("cpu")
OUT, IN, TOKENS = 5, 8, 600


def streams(seed: int = 0, drift: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(W, x as it was, x as it has become, y* = W x + b)."""
    generator = torch.Generator().manual_seed(seed)
    W, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((OUT, IN), (TOKENS, IN)))
    mixing = torch.eye(IN, dtype=torch.float64) + drift * torch.randn(IN, IN, generator=generator).double() / IN**0.5
    return W, x, x @ mixing + 0.3, x @ W.T + torch.arange(OUT)


def moments(x: Tensor, y: Tensor) -> Moments:
    mx, my = x.mean(0), y.mean(0)
    return Moments(mx, my, (x - mx).T @ (x - mx) / len(x), (y - my).T @ (x - mx) / len(x), len(x))


def test_without_ridge_it_is_the_least_squares_solution():
    W, _, drifted, y = streams()
    centred = drifted - drifted.mean(0)
    expected = torch.linalg.lstsq(centred, y - y.mean(0)).solution.T
    assert torch.allclose(solve_anchored(W, moments(drifted, y), 1e-12), expected, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_inputs_that_have_not_drifted_leave_the_matrix_as_it_is(ridge):
    W, x, _, y = streams()
    assert torch.allclose(solve_anchored(W, moments(x, y), ridge), W, atol=1e-9)


def test_a_large_ridge_holds_it_to_the_matrix_and_nothing_seen_leaves_it():
    W, _, drifted, y = streams()
    assert torch.allclose(solve_anchored(W, moments(drifted, y), 1e9), W, atol=1e-6)
    nothing = moments(torch.zeros(3, IN).double(), torch.zeros(3, OUT).double())
    assert torch.equal(solve_anchored(W, nothing, 0.1), W)


def test_the_ridge_is_small_where_there_are_tokens_and_large_where_there_are_none():
    W, _, drifted, y = streams()
    generator = torch.Generator().manual_seed(1)
    noisy = y + 3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    plenty = [moments(drifted[:300], y[:300]), moments(drifted[300:], y[300:])]
    few = [moments(drifted[:12], noisy[:12]), moments(drifted[12:24], noisy[12:24])]
    ample, scarce = choose_ridge(W, plenty), choose_ridge(W, few)
    assert ample is not None
    assert ample <= 0.03
    assert scarce is None or scarce > ample
    assert choose_ridge(W, plenty[:1]) is None


@pytest.mark.parametrize("centred", [True, False])
def test_an_anchor_gives_the_problem_around_the_wanted_matrix(centred):
    W, _, drifted, y = streams()
    anchor = Anchor(IN, {"site": OUT}, CPU)
    for number, (x_part, y_part) in enumerate(zip(drifted.split(100), y.split(100), strict=True)):
        anchor.update(number, x_part, {"site": y_part})
    problem = anchor.problem("site", W, LayerStats(), centred)
    x = drifted - drifted.mean(0) if centred else drifted
    assert torch.allclose(problem.stats[InputCovariance].matrix, x.T @ x / TOKENS, atol=1e-9)
    wanted_y = y - y.mean(0) if centred else y
    error, before = ((wanted_y - x @ matrix.T).square().mean() for matrix in (problem.weight, W))
    # Without a bias that may move, the offset of the outputs stays.
    assert error < (0.05 if centred else 0.7) * before
    if not centred:
        assert problem.bias(W) is None
        return
    bias = problem.bias(problem.weight)
    assert bias is not None
    assert torch.allclose((drifted @ problem.weight.T + bias).mean(0), y.mean(0), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert-classifier", Residual.READ),
        ("bart", Residual.READ),
        ("gpt2", Residual.SUM),
        ("llama", Residual.SUM),
        ("t5", Residual.SUM),
        ("phi", Residual.SUM),
        ("opt", Residual.SUM),
        ("opt-norm-after", Residual.READ),
        ("gemma2", Residual.UNKNOWN),
    ],
)
def test_what_the_residual_stream_is_shows_in_the_numbers(name, kind):
    lm = BY_NAME[name].lm()
    for stack, blocks in lm.stacks():
        path = blocks[0][0]
        parts = find_sublayers(stack, path, lm.model)
        with ActivationCapture(lm.model, paths_to_capture(path, parts)) as tap, torch.no_grad():
            predict(lm, labelled_batches(lm, 1)[0])
        assert find_residual(tap, path, parts) is kind


@pytest.mark.parametrize(
    "name", ["bert-classifier", "gpt2", "llama-tied", "t5", "bart", "albert-masked", "gemma2", "opt"]
)
def test_a_walk_that_replaces_nothing_wants_the_matrices_as_they_are(name):
    lm = BY_NAME[name].lm()
    data = Calibration(labelled_batches(lm, 3))
    steps = sequential_calibrate(
        lm, data, {InputCovariance, GradCovariance}, lm.sites(("*",)), SequentialConfig(anchored=True)
    )
    for site, problem in (pair for step in steps for pair in step):
        assert torch.allclose(problem.weight, site.weight(), atol=1e-4), site.name
        if problem.means is not None:
            bias = problem.bias(site.weight())
            assert bias is not None
            assert torch.allclose(bias.float(), site.bias(), atol=1e-3), site.name


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama", "opt", "opt-norm-after"])
def test_the_writers_make_up_for_the_drift_of_the_stream(name):
    """Rank 3 in the first block: what the next writer is to give is the dense output and the drift before it."""
    lm = BY_NAME[name].lm()
    data = Calibration(labelled_batches(lm, 3))
    sites = lm.sites()
    drifted = 0.0
    for step in sequential_calibrate(lm, data, {InputCovariance}, sites, SequentialConfig(anchored=True)):
        for site, problem in step:
            if site.block == sites[-1].block and problem.means is not None:
                bias = problem.bias(site.weight())
                drifted = max(drifted, (bias - site.bias()).abs().max().item())
            if site.block == sites[0].block:
                lm.replace(site, factors(site, rank=3))
    assert drifted > 1e-2 or name == "llama"


def kl_of(lm: LanguageModel, step: Compress) -> float:
    batches = labelled_batches(lm, 12)
    with torch.no_grad():
        dense = [predict(lm, batch)[0] for batch in batches]
        step.apply(lm, Calibration(batches))
        now = [predict(lm, batch)[0] for batch in batches]
    return sum(divergence(a, b).mean().item() for a, b in zip(dense, now, strict=True))


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "bart"])
def test_anchoring_brings_a_model_closer_to_the_original_than_solving_each_layer_for_itself(name):
    apart = Compress(method=Drone(multiple=1), keep=0.5)
    anchored = Compress(method=Drone(multiple=1), keep=0.5, anchored=True)
    seeds = range(3)
    assert sum(kl_of(BY_NAME[name].lm(seed), anchored) for seed in seeds) < sum(
        kl_of(BY_NAME[name].lm(seed), apart) for seed in seeds
    )


def test_gradients_are_collected_anew_when_asked(monkeypatch):
    lm = BY_NAME["gpt2"].lm()
    data = Calibration(labelled_batches(lm), "sampled")
    sites = lm.sites()
    dense = collect_stats(lm, data, {GradCovariance}, sites)
    seen = {}
    for step in sequential_calibrate(lm, data, {InputCovariance, GradCovariance}, sites, SequentialConfig(refresh=1)):
        for site, problem in step:
            seen[site.name] = problem.stats[GradCovariance].matrix
            lm.replace(site, factors(site, rank=3))
    first, last = sites[0].name, sites[-1].name
    assert torch.allclose(seen[first], dense[first][GradCovariance].matrix)
    assert not torch.allclose(seen[last], dense[last][GradCovariance].matrix, rtol=1e-2)


def test_refresh_without_stages_is_one_sentence():
    with pytest.raises(Exception, match="refresh must be left out"):
        Compress(method=KfacSvd(), keep=0.5, refresh=2)
