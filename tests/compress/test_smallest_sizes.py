"""`spectrum` reaches every size that `uniform` reaches, and finds from shapes that a budget is too small."""

import re

import pytest

from laconic.calibrate import Calibration, collect_stats
from laconic.compress import Compress
from laconic.compress.allocators import AllocationRequest
from laconic.compress.allocators.spectrum import Spectrum
from laconic.compress.solving import find_problems
from laconic.errors import UserError
from laconic.methods import KfacSvd, Magnitude, Method, Rtn, Svd, Wlra
from laconic.model import LanguageModel
from tests.architectures import Architecture
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES
from tests.tiny_models import TINY_MODELS

pytestmark = pytest.mark.filterwarnings("ignore:.*saw fewer tokens:laconic.errors.Notice")
DENSE = "llama"


def tiny(name: str) -> LanguageModel:
    model = TINY_MODELS[name] if name == DENSE else MIXTURES[name][0]
    return LanguageModel.of(Architecture(name, model).model())


def step(method: Method, keep: object, allocate: str, **settings: object) -> Compress:
    return Compress(method=method, keep=keep, allocate=allocate, **settings)


def smallest_keep(lm: LanguageModel, method: Method, allocate: str) -> float:
    """The fraction that the error for a budget that is too small names."""
    with pytest.raises(UserError, match=r"^keep must be (at least|more than) \d\.\d+, ") as caught:
        step(method, 0.035, allocate).check(lm)
    found = re.search(r"\d\.\d+", str(caught.value))
    assert found is not None
    return float(found[0])


@pytest.mark.parametrize("name", [DENSE, *MIXTURES])
def test_spectrum_reaches_what_uniform_reaches(name: str) -> None:
    lm = tiny(name).to_meta()
    for method in (KfacSvd(), Rtn()):
        # A matrix of which even rank 1 takes more bytes stays dense.
        assert smallest_keep(lm, method, "spectrum") <= smallest_keep(lm, method, "uniform") + 1e-9


@pytest.mark.parametrize("method", [Svd(), Wlra(), Rtn(), Magnitude()], ids=lambda method: method.name)
def test_the_check_from_shapes_knows_the_smallest_candidates(method: Method) -> None:
    """A budget that passes the check can be spent, and one just below it can not."""
    lm = tiny("mixtral")
    least = smallest_keep(lm, method, "spectrum")
    spec = step(method, least + 1e-4, "spectrum")
    targeted = spec._find_targeted(lm)
    data = Calibration(labelled_batches(lm))
    problems = find_problems(lm, targeted.layer_sets, collect_stats(lm, data, spec.needs, targeted.sites))
    plan = Spectrum().plan(AllocationRequest(spec, lm, targeted.layer_sets, problems)).plan
    assert set(plan) == {layer_set.joint[0].name for layer_set in targeted.layer_sets}
    below = step(method, least - 2e-4, "spectrum")
    with pytest.raises(UserError, match=rf"^keep must be at least {least:.4f}, the fraction"):
        Spectrum().plan(AllocationRequest(below, lm, targeted.layer_sets, problems))


@pytest.mark.parametrize("name", [DENSE, "deepseek-v3", "qwen2-moe"])
def test_spectrum_spends_a_small_budget(name: str) -> None:
    lm = tiny(name)
    outcome = step(Svd(), 0.3, "spectrum").apply(lm, Calibration(labelled_batches(lm)))
    assert 0.29 < outcome.nbytes / outcome.dense_nbytes <= 0.3


@pytest.mark.parametrize("allocate", ["uniform", "spectrum", "global"])
def test_the_error_names_the_group_whose_budget_is_too_small(allocate: str) -> None:
    lm = tiny("mixtral").to_meta()
    method = Magnitude() if allocate == "global" else KfacSvd()
    with pytest.raises(UserError, match=r"^keep\.ffn must be (at least|more than) 0\.\d+, .*; got 0\.001\.$"):
        step(method, {"attention": 0.5, "ffn": 0.001}, allocate).check(lm)


def test_a_shared_input_factor_counts_as_the_smaller_alternative() -> None:
    lm = tiny(DENSE).to_meta()

    def check(keep: float, share_inputs: bool) -> None:
        step(Svd(), keep, "spectrum", share_inputs=share_inputs).check(lm)

    least = smallest_keep(lm, Svd(), "spectrum")
    with pytest.raises(UserError, match="keep must be at least"):
        check(0.95 * least, share_inputs=False)
    check(0.95 * least, share_inputs=True)
