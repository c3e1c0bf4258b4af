"""Scales put into what makes the inputs: every architecture computes what it did, and nothing else reads them."""

import pytest
import torch
import transformers as hf

from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.model.scale_folding import Absorber, find_absorbers, fold_scales
from tests.architectures import BY_NAME, EVERY_ARCHITECTURE, Architecture, factors, outputs
from tests.tiny_models import SMALL
from tests.tiny_relatives import BLOOM, MPT

FREE = {
    "llama": 14,
    "qwen3": 14,
    "gemma2": 14,
    "opt": 12,
    "gpt-neo": 10,
    "gpt2": 6,
    "phi": 10,
    "t5": 28,
    "t5-gated": 32,
}
"""Matrices whose inputs can be scaled: all but keys and values of memory, and what an activation comes before."""
NONE = ("deberta-masked", "longformer-masked", "longformer-classifier", "led")
"""Post-norm, and with values that nothing is known of or that a vector is added to."""


def shaken(architecture: Architecture) -> LanguageModel:
    """With norms and biases that are not what a new model has."""
    lm = architecture.lm()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return lm


def some_scales(absorber: Absorber) -> torch.Tensor:
    return torch.rand(absorber.count, generator=torch.Generator().manual_seed(1)) * 3 + 0.3


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE, ids=lambda architecture: architecture.name)
def test_the_model_computes_what_it_did(architecture: Architecture) -> None:
    lm = shaken(architecture)
    before, absorbers = outputs(lm.model), find_absorbers(lm)
    assert bool(absorbers) == (architecture.name not in NONE)
    for absorber in absorbers:
        weights = [site.weight().clone() for site in absorber.readers]
        scales = some_scales(absorber)
        fold_scales(lm, absorber, scales)
        for site, weight in zip(absorber.readers, weights, strict=True):
            torch.testing.assert_close(site.weight(), weight * scales[absorber.columns])
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FREE)
def test_as_many_matrices_as_can_be_are_scaled(name: str) -> None:
    absorbers = find_absorbers(BY_NAME[name].lm())
    assert sum(len(absorber.readers) for absorber in absorbers) == FREE[name]
    assert len({site.name for absorber in absorbers for site in absorber.readers}) == FREE[name]


def test_norms_that_come_after_the_sublayers_take_up_nothing() -> None:
    for name in ("bert-base", "opt-norm-after"):
        lm = BY_NAME[name].lm()
        assert not any(absorber.rows is None for absorber in find_absorbers(lm))


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_a_flag_or_a_limit_of_the_model_may_stand_in_the_way(name: str) -> None:
    """BLOOM's residual stream may pass its norms, and MPT may limit its values before it mixes them."""
    build = {
        "bloom": lambda: hf.BloomForCausalLM(
            hf.BloomConfig(**BLOOM, **SMALL, apply_residual_connection_post_layernorm=True)
        ),
        "mpt": lambda: hf.MptForCausalLM(hf.MptConfig(**MPT, **SMALL, attn_config={"clip_qkv": 0.5})),
    }[name]
    lm = shaken(Architecture(name, build))
    before, absorbers = outputs(lm.model), find_absorbers(lm)
    assert {absorber.name.rpartition(".")[2] for absorber in absorbers} == (
        {"query_key_value"} if name == "bloom" else {"norm_1", "norm_2"}
    )
    for absorber in absorbers:
        fold_scales(lm, absorber, some_scales(absorber))
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)


def test_heads_that_share_their_values_share_their_scales() -> None:
    lm = BY_NAME["llama"].lm()
    (absorber,) = [absorber for absorber in find_absorbers(lm) if absorber.name.endswith("layers.0.self_attn.v_proj")]
    assert absorber.count == 16
    assert absorber.columns.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]


def test_what_is_compressed_already_is_left_as_it_is() -> None:
    lm = BY_NAME["llama"].lm()
    for site in lm.sites(("*layers.0.self_attn.k_proj", "*layers.0.mlp.up_proj")):
        lm.replace(site, factors(site, rank=4))
    names = {site.name for absorber in find_absorbers(lm) for site in absorber.readers if ".0." in site.name}
    assert names == {"model.layers.0.self_attn.o_proj"}
    before = outputs(lm.model)
    for absorber in find_absorbers(lm):
        fold_scales(lm, absorber, some_scales(absorber))
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, Format) for module in lm.model.modules())


def test_what_is_put_in_is_as_it_will_be_stored_and_trains_as_before() -> None:
    lm = BY_NAME["llama"].lm().with_dtype(torch.float16)
    (first, *_) = find_absorbers(lm)
    lm.model.get_submodule(first.name).requires_grad_(False)
    fold_scales(lm, first, some_scales(first))
    norm = lm.model.get_submodule(first.name).get_parameter("weight")
    assert torch.equal(norm, norm.half().float()) and not norm.requires_grad
    weight = first.readers[0].parameter
    assert torch.equal(weight, weight.half().float()) and weight.requires_grad


def test_a_twin_keeps_what_it_had() -> None:
    lm = BY_NAME["gpt2"].lm()
    twin, before = lm.shallow_copy(), outputs(lm.model)
    kept = {name: tensor.clone() for name, tensor in twin.model.state_dict().items()}
    for absorber in find_absorbers(lm):
        fold_scales(lm, absorber, some_scales(absorber))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in twin.model.state_dict().items())
    assert torch.equal(outputs(twin.model), before)
