"""Every method on stacks of experts: each expert is solved as a matrix of its own, and the model reloads exactly."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.formats import DenseExpertStack, ExpertLayer, ExpertStack, Format
from laconic.formats.expert_stacks import LowRankStack
from laconic.formats.packed_stack import PackedStack
from laconic.formats.sparse_stack import SparseStack
from laconic.methods import AnyOf, Gptq, KfacPrune, KfacSvd, Magnitude, Method, Rtn, SparseGpt, Svd
from laconic.model import LanguageModel, load
from laconic.store import save
from tests.architectures import Architecture, alike, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import EXPERTS, MIXTURES
from tests.test_every_method import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice", "ignore::laconic.errors.Notice")

EVERY = ("experts",)
ALONE = [method for method in EXAMPLES if not isinstance(method, AnyOf)]
"""The methods that give all matrices equal fractions."""
FIRST = ("model.layers.0.mlp.experts*",)


def mixture(name: str = "mixtral") -> LanguageModel:
    return Architecture(name, MIXTURES[name][0]).lm()


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 4))


def stacks(lm: LanguageModel) -> dict[str, ExpertStack]:
    """The stacks of all layers in which one is compressed, by path."""
    return {
        f"{path}.{name}": stack
        for path, layer in lm.model.named_modules()
        if isinstance(layer, ExpertLayer)
        for name, stack in layer.stacks().items()
    }


def compressed(method: Method, name: str = "mixtral") -> LanguageModel:
    lm = mixture(name)
    Compress(method=method, targets=EVERY, allow_dense=True).apply(lm, None)
    return lm


def check_reload(lm: LanguageModel, folder: Path) -> None:
    save(lm, folder)
    again = load(str(folder))
    stored, loaded = lm.model.state_dict(), again.model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in stored.items())
    # How a product is summed depends on where the matrix lies.
    assert torch.allclose(outputs(again.model), outputs(lm.model), atol=1e-5)


@pytest.mark.parametrize("method", ALONE, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["mixtral", pytest.param("gpt-oss", marks=pytest.mark.slow)])
def test_each_expert_is_solved_as_a_matrix_of_its_own(name: str, method: Method, tmp_path: Path) -> None:
    lm = mixture(name)
    keep = None if method.has_size else 0.6
    step = Compress(method=method, keep=keep, targets=FIRST, allow_dense=True)
    sites = step.sites(lm)
    stats = collect_stats(lm, data_for(lm), step.needs, sites)
    weights = {site.name: site.weight() for site in sites}
    outcome = step.apply_with(lm, stats)
    assert list(outcome.plan) == [f"model.layers.0.mlp.experts.{stack}_proj" for stack in ("gate_up", "down")]
    for unit, stack in stacks(lm).items():
        chosen, nbytes = outcome.plan[unit], 0
        assert chosen is not None
        for expert in range(EXPERTS):
            matrix = f"{unit}.{expert}"
            own = chosen.compress(weights[matrix].contiguous(), LayerStats(stats[matrix]))
            slice = stack.slice(expert)
            assert isinstance(slice, Format)
            assert torch.allclose(slice.dense(), own.dense(), rtol=0, atol=1e-6)
            nbytes += own.nbytes()
        assert outcome.after[unit] == stack.nbytes() == nbytes
    check_reload(lm, tmp_path / "model")


@pytest.mark.parametrize(
    ("method", "allocate"),
    [(KfacSvd(multiple=1), "uniform"), (KfacSvd(multiple=1), "spectrum"), (KfacPrune(), "global")],
    ids=["uniform", "spectrum", "global"],
)
@pytest.mark.parametrize("sequential", [False, True])
def test_budgets_are_kept(method: Method, allocate: Any, sequential: bool) -> None:
    lm = mixture()
    step = Compress(
        method=method,
        keep=0.5,
        allocate=allocate,
        sequential=sequential,
        targets=("attention", *EVERY),
        allow_dense=True,
    )
    outcome = step.apply(lm, data_for(lm))
    assert 0.4 * outcome.dense_nbytes <= outcome.nbytes <= 0.5 * outcome.dense_nbytes
    found = stacks(lm)
    assert {type(stack) for stack in found.values()} <= {LowRankStack, SparseStack, DenseExpertStack}
    stored = {unit: stack.nbytes() for unit, stack in found.items()}
    assert stored == {unit: size for unit, size in outcome.after.items() if unit in stored}
    assert outputs(lm.model).isfinite().all()


def test_a_sequential_solution_sees_the_errors_before_it() -> None:
    step = Compress(method=Gptq(bits=3, group_size=16), targets=EVERY, allow_dense=True)
    sequential = Compress(method=Gptq(bits=3, group_size=16), targets=EVERY, allow_dense=True, sequential=True)
    one, other = mixture(), mixture()
    step.apply(one, data_for(one))
    sequential.apply(other, data_for(other))
    first, last = "model.layers.0.mlp.experts.gate_up_proj.codes", "model.layers.1.mlp.experts.gate_up_proj.codes"
    assert torch.equal(one.model.get_parameter(first), other.model.get_parameter(first))
    assert not torch.equal(one.model.get_parameter(last), other.model.get_parameter(last))


@pytest.mark.parametrize("method", [Rtn(bits=4), Magnitude(sparsity=0.5), Svd(rank=4)], ids=lambda method: method.name)
def test_the_size_of_the_model_is_that_of_its_tensors(method: Method) -> None:
    lm = compressed(method)
    assert lm.size()[1] == sum(tensor.nbytes for tensor in lm.model.state_dict().values())


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (Svd(rank=8), Rtn(bits=4), LowRankStack),
        (Magnitude(sparsity=0.5), Rtn(bits=4), PackedStack),
        (Magnitude(sparsity=0.3), Magnitude(sparsity=0.6), SparseStack),
        (Magnitude(sparsity=0.3), SparseGpt(pattern="2:4"), SparseStack),
    ],
    ids=["factors are quantized", "pruned weights are quantized", "pruned twice", "a pattern after pruning"],
)
def test_a_second_step_works_on_stacks(first: Method, second: Method, kind: type[ExpertStack], tmp_path: Path) -> None:
    lm = compressed(first)
    before = lm.size()[1]
    Compress(method=second, targets=EVERY, allow_dense=True).apply(lm, data_for(lm))
    assert lm.size()[1] < before
    assert all(isinstance(stack, kind) for stack in stacks(lm).values())
    check_reload(lm, tmp_path / "model")


def test_pruned_experts_are_refused_where_zeros_would_be_filled() -> None:
    lm = compressed(Magnitude(sparsity=0.5))
    with pytest.raises(UserError, match=r"'model.layers.0.mlp.experts.gate_up_proj' is pruned, and 'svd' would fill"):
        Compress(method=Svd(rank=4), targets=EVERY, allow_dense=True).check(lm)


def test_solutions_of_a_stack_are_not_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = mixture()
    step = Compress(method=KfacSvd(), keep=0.5, targets=EVERY, allow_dense=True)
    stats = collect_stats(lm, data_for(lm), step.needs, step.sites(lm))
    kept: list[int] = []
    solve = KfacSvd.compress

    def compress(method: KfacSvd, weight: torch.Tensor, own: LayerStats) -> Any:
        kept.append(sum(bool(other.solutions) for other in stats.values()))
        return solve(method, weight, own)

    monkeypatch.setattr(KfacSvd, "compress", compress)
    step.apply_with(lm, stats)
    assert kept == [0] * (4 * EXPERTS)


def test_another_size_is_solved_from_stored_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(keep: float) -> LanguageModel:
        lm = mixture()
        Compress(method=KfacSvd(), keep=keep, targets=("attention", *EVERY), allow_dense=True).apply(lm, data_for(lm))
        return lm

    expected = solve(0.4)
    solve(0.5)
    monkeypatch.setattr(import_module("laconic.compress.matrices"), "collect_stats", None)
    assert alike(outputs(solve(0.4).model), outputs(expected.model))


def test_gradients_reach_the_layers_before_compressed_experts() -> None:
    lm = compressed(Rtn(bits=4))
    lm.model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    gradient = lm.model.get_parameter("model.embed_tokens.weight").grad
    assert gradient is not None
    assert gradient.any()
