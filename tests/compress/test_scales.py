"""SmoothQuant and AWQ's scales as steps: the paper's numbers, the same model, and what a later step makes of it."""

import pytest
import torch

from laconic.calibrate import AbsMax, AbsMean, Calibration, collect_stats
from laconic.compress import AwqScale, Compress, SmoothQuant
from laconic.errors import UserError
from laconic.formats import Quantized
from laconic.methods import Rtn
from laconic.model import LanguageModel
from laconic.model.scale_folding import find_absorbers
from laconic.recipe.parse import method_or_step
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches

STEPS = (SmoothQuant(), AwqScale(bits=3, group_size=8))
PRE_NORM = ("llama", "gpt2", "t5", "opt", "gemma2")

every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 4))


@every_step
@pytest.mark.parametrize("name", [*PRE_NORM, "bert-classifier"])
@pytest.mark.slow
def test_the_model_computes_what_it_did_and_its_matrices_do_not(name: str, step: SmoothQuant | AwqScale) -> None:
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    weights = {site.name: site.weight().clone() for site in lm.sites(("blocks",))}
    outcome = step.apply(lm, data_for(lm))
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)
    assert outcome.after == outcome.before
    assert set(outcome.before) == {site.name for a in find_absorbers(lm) for site in a.readers}
    changed = {site.name for site in lm.sites(("blocks",)) if not torch.allclose(site.weight(), weights[site.name])}
    assert changed & set(outcome.before)


def test_smoothquant_is_equation_4() -> None:
    """s_j = max |x_j|^α / max |w_j|^{1−α} over q, k and v, which read one input."""
    lm = BY_NAME["llama"].lm()
    data, (first, *_) = data_for(lm), find_absorbers(lm)
    x = collect_stats(lm, data, {AbsMax}, list(first.readers))[first.readers[0].name][AbsMax].vector
    w = torch.cat([site.weight() for site in first.readers]).abs().amax(0)
    before = [site.weight().clone() for site in first.readers]
    SmoothQuant(alpha=0.7).apply(lm, data)
    s = (x**0.7 / w**0.3).float()
    for site, weight in zip(find_absorbers(lm)[0].readers, before, strict=True):
        expected = weight * s
        # The rows of the values are divided for the sake of the output projection.
        if not site.name.endswith("v_proj"):
            torch.testing.assert_close(site.weight(), expected, rtol=1e-4, atol=1e-6)
    after = collect_stats(lm, data, {AbsMax}, [find_absorbers(lm)[0].readers[0]])
    torch.testing.assert_close(next(iter(after.values()))[AbsMax].vector, x / s, rtol=1e-4, atol=1e-6)


def test_awq_takes_one_power_of_the_activity_for_all_readers() -> None:
    lm = BY_NAME["llama"].lm()
    data, (first, *_) = data_for(lm), find_absorbers(lm)
    x = collect_stats(lm, data, {AbsMean}, list(first.readers))[first.readers[0].name][AbsMean].vector.float()
    before = first.readers[0].weight().clone()
    AwqScale(bits=3, group_size=8).apply(lm, data)
    ratio = (find_absorbers(lm)[0].readers[0].weight() / before).median(0).values
    assert any(torch.allclose(ratio, x ** (i / 20) / (x.max() * x.min()) ** (i / 40), rtol=1e-3) for i in range(20))


def test_scaled_then_rounded_nothing_is_added() -> None:
    lm = BY_NAME["llama"].lm()
    data = data_for(lm)
    AwqScale(bits=3, group_size=8).apply(lm, data)
    Compress(method=Rtn(bits=3, group_size=8)).apply(lm, data)
    layers = [module for module in lm.model.modules() if isinstance(module, Quantized)]
    assert len(layers) == 14
    assert all(layer.column_scales is None for layer in layers)


def test_an_input_that_was_never_active_keeps_its_scale() -> None:
    lm = BY_NAME["llama"].lm()
    (first, *_) = find_absorbers(lm)
    with torch.no_grad():
        lm.model.get_submodule(first.name).get_parameter("weight")[3] = 0
    before = first.readers[0].weight()[:, 3].clone()
    SmoothQuant().apply(lm, data_for(lm))
    assert torch.equal(first.readers[0].weight()[:, 3], before)
    assert torch.isfinite(outputs(lm.model)).all()


@every_step
def test_a_model_in_which_nothing_takes_up_scales_is_refused(step: SmoothQuant | AwqScale) -> None:
    lm = BY_NAME["longformer-classifier"].lm()
    with pytest.raises(UserError, match="cannot be applied to this 'longformer': it has no norm"):
        step.check(lm)
    with pytest.raises(UserError, match="needs calibration data"):
        step.apply(BY_NAME["llama"].lm(), None)


def test_they_are_lines_of_a_recipe_and_their_mistakes_are_sentences() -> None:
    assert method_or_step("smoothquant:alpha=0.8", "method") == SmoothQuant(alpha=0.8)
    assert method_or_step("awq-scale:bits=3,group_size=channel", "method") == AwqScale(bits=3, group_size="channel")
    with pytest.raises(UserError, match=r"method.smoothquant.alpha must be in \[0, 1\]"):
        method_or_step("smoothquant:alpha=2", "method")
    with pytest.raises(UserError, match=r"alpha must be in \[0, 1\]"):
        SmoothQuant(alpha=-1)
    with pytest.raises(UserError, match=r"^bits must be in \[2, 8\]"):
        AwqScale(bits=9)
