"""Entries of mixtures: what reads one input shares it, and folded scales and removed heads leave the outputs."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from laconic.compress import Narrow
from laconic.errors import UserError
from laconic.model import Group, LanguageModel
from laconic.model.anatomy import find_entry
from laconic.model.depth import find_subblocks
from laconic.model.layers import find_layers
from laconic.model.scale_folding import find_absorbers, fold_scales
from tests.architectures import HEADS, WIDTH, Architecture, batch_for, outputs
from tests.experts import EVERY, EXPERTS, LATENT, MIXTURES

BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: entry[0] for name, entry in MIXTURES.items()},
    "granitemoe": lambda: hf.GraniteMoeForCausalLM(
        hf.GraniteMoeConfig(**EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2)
    ),
    "deepseek-v3-wide-queries": lambda: hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(**{**LATENT, "q_lora_rank": None})
    ),
}
every_mixture = pytest.mark.parametrize("name", BUILD)


def tiny(name: str) -> LanguageModel:
    return LanguageModel.of(Architecture(name, BUILD[name]).model())


def test_each_family_has_an_entry() -> None:
    for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe", "granitemoe"):
        entry = find_entry(name)
        assert entry is not None and entry.stacks[0].experts


@every_mixture
def test_every_linear_in_the_blocks_is_a_site_and_shared_inputs_are_shared(name: str) -> None:
    lm = tiny(name)
    sites = [site for site in lm.sites(("blocks",)) if site.stack is None]
    linears = [path for path, module in lm.model.named_modules() if isinstance(module, nn.Linear) and "layers." in path]
    assert sorted(site.name for site in sites) == sorted(linears)
    assert {site.group for site in lm.sites(("experts",))} == {Group.EXPERTS}
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        handles = [
            site.module.register_forward_pre_hook(lambda _, args, name=site.name: seen.update({name: args[0]}))
            for site in sites
        ]
        lm.model(**batch_for(lm.model))
    for handle in handles:
        handle.remove()
    by_input: dict[str, list[str]] = {}
    for site in sites:
        by_input.setdefault(site.input, []).append(site.name)
    for names in by_input.values():
        assert all(torch.equal(seen[names[0]], seen[other]) for other in names)
    assert any(len(names) > 1 for names in by_input.values())


@every_mixture
def test_folded_scales_leave_the_outputs(name: str) -> None:
    lm = tiny(name)
    before = outputs(lm.model)
    absorbers = find_absorbers(lm)
    norms = {absorber.name.rpartition(".")[2] for absorber in absorbers if absorber.rows is None}
    assert "input_layernorm" in norms
    assert not name.startswith("deepseek") or "kv_a_layernorm" in norms
    assert name != "deepseek-v3" or "q_a_layernorm" in norms
    generator = torch.Generator().manual_seed(0)
    for absorber in absorbers:
        scales = torch.rand(absorber.count, generator=generator, dtype=torch.float64) + 0.5
        fold_scales(lm, absorber, scales)
    assert torch.allclose(outputs(lm.model), before, rtol=1e-4, atol=1e-4)


def test_a_limit_of_the_values_keeps_their_scale() -> None:
    model = Architecture("olmoe", lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**EVERY, clip_qkv=0.5))).model()
    assert not any(absorber.name.endswith("v_proj") for absorber in find_absorbers(LanguageModel.of(model)))
    assert any(absorber.name.endswith("v_proj") for absorber in find_absorbers(tiny("olmoe")))


@every_mixture
def test_experts_are_no_part_that_can_be_dropped_from_a_block(name: str) -> None:
    lm = tiny(name)
    ((stack, blocks),) = lm.stacks()
    (layers,) = find_layers(lm)
    for index, (_, block) in enumerate(blocks):
        if stack.has_experts(block) and stack.attention is None:
            with pytest.raises(UserError, match=r"^The parts of a block of 'deepseek_v3' are not known"):
                find_subblocks(lm, layers, index)
            continue
        parts = {subblock.part for subblock in find_subblocks(lm, layers, index)}
        assert ("ffn" in parts) == (not stack.has_experts(block))


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "granitemoe"])
def test_removing_heads_without_effect_leaves_the_outputs(name: str) -> None:
    lm = tiny(name)
    size = WIDTH // HEADS
    for site in lm.sites(("*.o_proj",)):
        # Two query heads share the first key head.
        site.parameter.data[:, : 2 * size] = 0
    before = outputs(lm.model)
    Narrow(heads=0.5, importance="magnitude", refit=False).apply(lm, None)
    assert {site.shape for site in lm.sites(("*.o_proj",))} == {(WIDTH, WIDTH // 2)}
    assert torch.allclose(outputs(lm.model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["olmoe", "gpt-oss"])
def test_heads_that_depend_on_each_other_stay(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot go one by one|covers the queries|attention sink"):
        Narrow(heads=0.5, importance="magnitude", refit=False).check(tiny(name))
