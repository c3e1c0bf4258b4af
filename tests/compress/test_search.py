"""Sizes found by an error of the whole model: never over it, slow modules smallest, the same for every method."""

import copy
from itertools import permutations, product

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.calibrate.passes import LayerTiming, Profile
from laconic.compress import Compress, kl_metric
from laconic.compress.allocators import threshold
from laconic.compress.allocators.threshold import GRID, allot_error
from laconic.compress.solve_groups import all_groups, find_layer_sets
from laconic.errors import UserError
from laconic.methods import AnyOf, Drone, KfacSvd, Method, Svd
from laconic.model import LanguageModel, divergence, predict
from tests.architectures import BY_NAME
from tests.compress.test_matrices import data_for
from tests.test_every_method import EXAMPLES

ERROR = 1e-3


@pytest.fixture(autouse=True)
def same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix takes as long as any other."""
    monkeypatch.setattr(
        threshold, "profile", lambda lm, sites, *_: Profile(1.0, {site.name: LayerTiming((1,), 0.01) for site in sites})
    )


def kl(original: LanguageModel, changed: LanguageModel, data: Calibration) -> float:
    with torch.no_grad():
        parts = [divergence(predict(original, batch)[0], predict(changed, batch)[0]) for batch in data.batches]
    return torch.cat(parts).mean().item()


def twin(lm: LanguageModel) -> LanguageModel:
    return LanguageModel.of(copy.deepcopy(lm.model))


def search(method: Method, error: float = ERROR, **more: object) -> Compress:
    return Compress(method=method, allocate="threshold", error=error, **more)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5-gated"])
@pytest.mark.slow
def test_the_error_is_kept_and_more_of_it_makes_smaller_models(name: str) -> None:
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    sizes = []
    for error in (1e-4, 1e-2):
        small = twin(lm)
        outcome = search(KfacSvd(multiple=1), error).apply(small, data)
        assert kl(lm, small, data) <= error * (1 + 1e-4)
        sizes.append(outcome.nbytes)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    "method", [e for e in EXAMPLES if not e.has_size and not isinstance(e, AnyOf)], ids=lambda method: method.name
)
@pytest.mark.slow
def test_it_works_for_every_method_that_comes_in_sizes(method: Method) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    small = twin(lm)
    outcome = search(method, 0.01, targets=("*.layer.0.intermediate.dense", "*.layer.0.output.dense")).apply(
        small, data
    )
    assert kl(lm, small, data) <= 0.01 * (1 + 1e-4)
    assert outcome.nbytes < outcome.dense_nbytes
    again = twin(lm)
    Compress(method=method, plan=outcome.plan).apply(again, data)
    assert kl(small, again, data) < 1e-9


def test_the_smallest_size_on_the_grid_that_keeps_the_error_is_found() -> None:
    """The size of the first module is compared with every size on the grid."""
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    site = lm.sites()[0]
    found = search(Svd(multiple=1), targets=(site.name,)).apply(twin(lm), data).plan[site.name]
    errors = {}
    for keep in GRID:
        method = Svd(multiple=1).with_keep(keep, site.shape)
        small = twin(lm)
        Compress(method=Svd(), plan={site.name: method}).apply(small, data)
        errors[method] = kl(lm, small, data)
    assert found == next(method for method, error in errors.items() if error <= ERROR)


def test_slow_modules_may_err_more(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    groups = all_groups(find_layer_sets(lm.sites(), False))
    slow = groups[1].name
    uses = {unit.name: LayerTiming((1,), 0.5 if unit.name == slow else 0.001) for unit in groups}
    parts = allot_error(ERROR, groups, Profile(1.0, uses))
    assert sum(parts.values()) == pytest.approx(ERROR)
    assert parts[slow] == pytest.approx(500 * parts[groups[0].name])
    even = search(Svd(multiple=1)).apply(twin(lm), data).after[slow]
    monkeypatch.setattr(threshold, "profile", lambda *_: Profile(1.0, uses))
    assert search(Svd(multiple=1)).apply(twin(lm), data).after[slow] < even
    nothing = allot_error(ERROR, groups, Profile(1.0, dict.fromkeys(uses, LayerTiming((), 0.0))))
    assert set(nothing.values()) == {ERROR / len(groups)}


def test_times_of_layers_with_one_size_are_summed_in_their_order() -> None:
    """Sums of floats depend on the order, and all processes and runs must find the same plan."""
    lm = BY_NAME["bert-classifier"].lm()
    groups = all_groups(find_layer_sets(lm.sites(), share_inputs=True))
    other, joint = groups[-1], [group for group in groups if len(group.sites) == 3]
    assert len(joint) > 1
    for group, shares in product(joint, permutations((1e16, 1.0, -1e16))):
        layers = {site.unit: LayerTiming((1,), share) for site, share in zip(group.sites, shares, strict=True)}
        layers[other.name] = LayerTiming((1,), 1.0)
        parts = allot_error(ERROR, [group, other], Profile(1.0, layers))
        assert parts[group.name] == ERROR * sum(shares) / (sum(shares) + 1.0)


def test_a_module_without_a_size_that_is_good_enough_stays_dense() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    before = copy.deepcopy(lm.model.state_dict())
    outcome = search(Svd(multiple=1), 1e-30).apply(lm, data_for(lm))
    assert set(outcome.plan.values()) == {None}
    assert outcome.nbytes == outcome.dense_nbytes
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize(("name", "targets"), [("llama-tied", ("embedding", "head")), ("gpt2", ("blocks",))])
def test_tied_and_shared_matrices_are_searched_too(name: str, targets: tuple[str, ...]) -> None:
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    small = twin(lm)
    search(KfacSvd(multiple=1), 0.05, targets=targets, share_inputs=True).apply(small, data)
    assert kl(lm, small, data) <= 0.05 * (1 + 1e-4)


def test_what_the_original_predicts_is_kept_or_predicted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = BY_NAME["gpt2"].lm()
    kept = search(Drone(multiple=1)).apply(twin(lm), data_for(lm)).plan
    monkeypatch.setattr(kl_metric, "MAX_CACHED_LOGITS", 1)
    assert search(Drone(multiple=1)).apply(twin(lm), data_for(lm)).plan == kept


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "allocate: threshold needs error"),
        ({"error": 0.0}, r"error must be in \(0, ∞\); got 0.0"),
        ({"error": float("nan")}, "error must be a finite number; got nan"),
        ({"error": 0.1, "keep": 0.5}, "keep must be left out if allocate is threshold"),
        ({"error": 0.1, "method": Svd(rank=3)}, "so 'svd' must be given without one"),
        ({"error": 0.1, "sequential": True}, "sequential and anchored must be left out"),
        ({"error": 0.1, "allocate": "spectrum", "keep": 0.5}, "error must be left out unless allocate is threshold"),
    ],
)
def test_what_cannot_go_together_is_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Compress(**{"method": Svd(), "allocate": "threshold", **arguments})


def test_it_needs_data() -> None:
    step = search(Svd())
    assert step.needs_data
    with pytest.raises(UserError, match="needs calibration data"):
        step.apply(BY_NAME["gpt2"].lm(), None)
    with pytest.raises(UserError, match="threshold measures the error on calibration data"):
        step.apply_with(BY_NAME["gpt2"].lm(), {site.name: _nothing() for site in BY_NAME["gpt2"].lm().sites()})


def _nothing() -> object:
    from laconic.calibrate import LayerStats

    return LayerStats()
