"""The experts of a stack are solved one by one, with one method and size, and replaced together."""

import pytest
import torch
from torch import nn

from laconic.calibrate import Calibration, LayerStats
from laconic.compress import Compress
from laconic.compress.allocators.experts import add_candidates
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import find_layer_sets
from laconic.errors import UserError
from laconic.formats import ExpertLayer, ExpertStack
from laconic.methods import Candidate, Candidates, KfacSvd, Magnitude, Method, Rtn, Svd
from laconic.model import LanguageModel
from tests.architectures import Architecture, alike, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
LAST = "model.layers.1.mlp.experts.down_proj"
METHODS: tuple[Method, ...] = (Rtn(bits=4), Svd(rank=8), Magnitude(sparsity=0.5))


def tiny(name: str = "mixtral") -> LanguageModel:
    return LanguageModel.of(Architecture(name, MIXTURES[name][0]).model())


def compress(
    lm: LanguageModel, method: Method, targets: tuple[str, ...] = ("experts",), **settings: object
) -> Compress:
    return Compress(method=method, targets=targets, allow_dense=True, **settings)


def stacks(lm: LanguageModel) -> dict[str, tuple[str, dict[str, object]]]:
    return {
        path: (module.kind, module.spec())
        for path, module in lm.model.named_modules()
        if isinstance(module, ExpertStack)
    }


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_expert_is_what_the_method_makes_of_its_matrix(name: str, method: Method) -> None:
    lm = tiny(name)
    step, empty = compress(lm, method), lm.to_meta()
    expected = {site.name: method.compress(site.weight(), LayerStats()).dense() for site in lm.sites(("experts",))}
    biases = {site.name: site.bias() for site in lm.sites(("experts",))}
    units = list(dict.fromkeys(site.unit for site in lm.sites(("experts",))))
    step.check_and_dry_run(empty)
    outcome = step.apply(lm, None)
    assert list(outcome.plan) == list(outcome.before) == list(outcome.after) == units
    assert set(outcome.plan.values()) == {method} and outcome.found == {}
    layers = [module for module in lm.model.modules() if isinstance(module, ExpertLayer)]
    assert len(layers) == 2
    for path, stack in ((path, lm.model.get_submodule(path)) for path in units):
        assert isinstance(stack, ExpertStack) and outcome.after[path] == stack.nbytes()
        assert outcome.after[path] < outcome.before[path] == EXPERTS * stack.out_features * stack.in_features * 4
        for index in range(EXPERTS):
            slice = stack.slice(index)
            assert not isinstance(slice, nn.Linear)
            assert torch.allclose(slice.dense(), expected[f"{path}.{index}"], rtol=0, atol=1e-6)
            bias = biases[f"{path}.{index}"]
            assert (bias is None and slice.bias is None) or torch.equal(slice.bias, bias)
    assert stacks(empty) == stacks(lm), "a dry run gives the same structure"


def test_a_plan_names_stacks_and_gives_the_same_model_again() -> None:
    first, second = tiny(), tiny()
    outcome = compress(first, Svd(), ("attention", "experts"), keep=0.5).apply(first, None)
    assert LAST in outcome.plan and f"{LAST}.0" not in outcome.plan
    again = Compress(method=Svd(), plan=outcome.plan).apply(second, None)
    assert again.plan == outcome.plan and again.after == outcome.after
    assert alike(outputs(first.model), outputs(second.model))


def test_a_stack_that_would_not_be_smaller_stays() -> None:
    lm = tiny()
    outcome = compress(lm, Svd(rank=31)).apply(lm, None)
    assert set(outcome.plan.values()) == {None} and outcome.after == outcome.before
    assert not any(isinstance(module, ExpertLayer) for module in lm.model.modules())


def test_the_factors_of_a_stack_can_be_compressed_again() -> None:
    lm = tiny()
    compress(lm, Svd(rank=8)).apply(lm, None)
    before = outputs(lm.model)
    outcome = compress(lm, Rtn(bits=8)).apply(lm, None)
    assert [line for line in outcome.plan if line.startswith(LAST)] == [f"{LAST}.right", f"{LAST}.left"]
    assert sum(outcome.after.values()) < 0.5 * sum(outcome.before.values())
    after = outputs(lm.model)
    assert not torch.equal(after, before) and torch.allclose(after, before, atol=0.3)
    with pytest.raises(UserError, match=r"^The layer 'model.layers.0.*' is quantized already"):
        compress(lm, Rtn(bits=4)).check(lm)


def test_all_experts_of_a_stack_are_targeted_or_none() -> None:
    lm = tiny()
    sentence = rf"^targets: The targets name 2 of the {EXPERTS} matrices of '{LAST}', which have one method and size"
    with pytest.raises(UserError, match=sentence):
        compress(lm, Rtn(bits=4), (f"{LAST}.[01]",)).check(lm)
    compress(lm, Rtn(bits=4), (f"{LAST}.*",)).check(lm)
    with pytest.raises(UserError, match=rf"^There is no site of this model '{LAST}.0': did you mean '{LAST}'"):
        Compress(method=Svd(), plan={f"{LAST}.0": Svd(rank=4)}).check(lm)


def test_a_budget_counts_every_expert() -> None:
    lm = tiny()
    outcome = compress(lm, Svd(multiple=1), ("attention", "experts"), keep=0.4).apply(lm, None)
    assert 0.39 < outcome.nbytes / outcome.dense_nbytes <= 0.4


def test_experts_share_the_budget_of_feed_forwards_unless_they_have_their_own() -> None:
    lm = tiny("qwen2-moe")
    sets = find_layer_sets(lm.sites(("attention", "ffn", "experts")), share_inputs=False)

    def budgets(keep: dict[str, float]) -> dict[str, set[str]]:
        by_budget = {}
        for (name, _), (_, members, _) in zip(keep.items(), split_budget(keep, sets), strict=True):
            by_budget[name] = {site.group.value for member in members for site in member.sites}
        return by_budget

    assert budgets({"attention": 0.5, "ffn": 0.3}) == {"attention": {"attention"}, "ffn": {"ffn", "experts"}}
    own = {"attention": 0.5, "ffn": 0.3, "experts": 0.2}
    assert budgets(own) == {name: {name} for name in own}


@pytest.mark.parametrize("currency", ["macs", "latency"])
def test_work_is_no_currency_for_experts(currency: str) -> None:
    lm = tiny()
    step = compress(lm, Svd(), keep=0.5, allocate="spectrum", currency=currency)
    with pytest.raises(
        UserError, match=f"^The currency {currency} counts each matrix once for a token, but the router"
    ):
        step.check(lm)


def test_a_size_of_a_stack_is_one_that_every_expert_offers() -> None:
    def offered(loss: float, *ranks: int) -> Candidates:
        sizes = (None, *map(lambda rank: Svd(rank=rank), ranks))
        return Candidates(
            tuple(
                Candidate(method=size, nbytes=10, parameters=3, products=((2, 3),), loss=loss if size else 0.0)
                for size in sizes
            )
        )

    both = add_candidates([offered(1.0, 1, 2), offered(4.0, 2, 3)])
    assert [(option.method, option.nbytes, option.parameters, option.loss) for option in both.all] == [
        (None, 20, 6, 0.0),
        (Svd(rank=2), 20, 6, 5.0),
    ]


@pytest.mark.filterwarnings("ignore::laconic.errors.Notice")
@pytest.mark.parametrize("sequential", [False, True])
def test_the_record_has_the_calibration_tokens_of_each_expert(tmp_path, monkeypatch, sequential: bool) -> None:
    """Also if the solutions come from the cache."""
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    data = Calibration(labelled_batches(tiny()))
    step = compress(tiny(), KfacSvd(rank=4, multiple=1), sequential=sequential)
    first, second = (step.apply(tiny(), data) for _ in range(2))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data.batches)
    assert first.found["experts"].keys() == first.plan.keys() and LAST in first.plan
    # Two experts read each token.
    assert all(len(rows) == EXPERTS and sum(rows) == 2 * tokens for rows in first.found["experts"].values())
    assert second.found["experts"] == first.found["experts"]
