"""Hybrids: their linear attentions and state spaces are compressed, and the steps compute what they should."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from benchmarks.architectures.functions import check_scales, check_shared_inputs, kill_half, skipping
from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten
from laconic.errors import UserError
from laconic.methods import KfacSvd
from laconic.model import LanguageModel, load
from laconic.model.depth_config import DropChecker
from laconic.model.layers import find_layers
from laconic.store import save
from tests.architectures import DECODER, SMALL, Architecture, batch_for, outputs

SIZES = {**DECODER, **SMALL, "num_hidden_layers": 4}
LINEAR = {
    **SIZES, "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SHARED = {**EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0}

# The model, and the linears of a block without attention that read its input.
HYBRIDS: dict[str, tuple[Callable[[], PreTrainedModel], set[str]]] = {
    "qwen3-next": (
        lambda: hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**LINEAR, **SHARED, mlp_only_layers=[3])),
        {"linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"},
    ),
    "qwen3.5": (
        lambda: hf.Qwen3_5ForCausalLM(hf.Qwen3_5TextConfig(**LINEAR)),
        {f"linear_attn.in_proj_{name}" for name in ("qkv", "z", "b", "a")},
    ),
    "qwen3.5-moe": (
        lambda: hf.Qwen3_5MoeForCausalLM(hf.Qwen3_5MoeTextConfig(**LINEAR, **SHARED)),
        {f"linear_attn.in_proj_{name}" for name in ("qkv", "z", "b", "a")},
    ),
    "jamba": (
        lambda: hf.JambaForCausalLM(
            hf.JambaConfig(
                **{name: size for name, size in SIZES.items() if name != "head_dim"}, **EXPERTS, **PERIODS,
                mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
            )
        ),
        {"mamba.in_proj"},
    ),
}  # fmt: skip
every_hybrid = pytest.mark.parametrize("name", HYBRIDS)


def hybrid(name: str) -> LanguageModel:
    return LanguageModel.of(Architecture(name, HYBRIDS[name][0]).model())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@every_hybrid
def test_linears_with_one_input_share_it_and_scales_leave_the_outputs(name: str) -> None:
    lm = hybrid(name)
    first = {site.name: site for site in lm.sites(("blocks",)) if site.block == "model.layers.0"}
    inputs = {first[f"model.layers.0.{path}"].input for path in HYBRIDS[name][1]}
    assert len(inputs) == 1
    assert [site.input for site in first.values()].count(inputs.pop()) == len(HYBRIDS[name][1])
    check_shared_inputs(lm.model)
    check_scales(lm.model)


@every_hybrid
def test_every_linear_of_its_blocks_is_a_site_or_is_read_directly(name: str) -> None:
    lm = hybrid(name)
    sites = {site.name for site in lm.sites(("blocks",))}
    linears = {
        f"{path}.{inside}"
        for _, blocks in lm.stacks()
        for path, block in blocks
        for inside, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {path.rpartition(".")[2] for path in linears - sites} <= {"dt_proj"}


@every_hybrid
def test_its_linears_are_compressed_and_reload(name: str, tmp_path: Path) -> None:
    lm = hybrid(name)
    data = Calibration([batch_for(lm.model)])
    outcome = Compress(method=KfacSvd(), keep=0.5, targets=("re:attn|mamba",), allow_dense=True).apply(lm, data)
    assert any("linear_attn" in path or "mamba" in path for path in outcome.plan)
    save(lm, tmp_path / "small")
    again = load(str(tmp_path / "small")).model
    before, after = lm.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert same(outputs(again), outputs(lm.model))


@every_hybrid
def test_dead_heads_and_channels_are_removed_without_a_change(name: str, tmp_path: Path) -> None:
    for part in ("heads", "channels"):
        lm = hybrid(name)
        kill_half(lm.model, part)
        before, parameters = outputs(lm.model), lm.size()[0]
        step = Narrow(heads=0.5) if part == "heads" else Narrow(channels=0.5, multiple=1)
        step.apply(lm, Calibration([batch_for(lm.model)]))
        assert lm.size()[0] < parameters
        assert same(outputs(lm.model), before)
        save(lm, tmp_path / part)
        assert same(outputs(load(str(tmp_path / part)).model), before)


@every_hybrid
@pytest.mark.parametrize("dropped", [0, 3])
def test_a_block_is_dropped_as_if_it_were_skipped(name: str, dropped: int, tmp_path: Path) -> None:
    lm, original = hybrid(name), hybrid(name).model
    layers = find_layers(lm)[0]
    if not DropChecker(lm).accepts(layers, (dropped,)):
        assert name == "jamba", "its kinds of layers are periodic, and the first or last one belongs to the period"
        return
    Shorten(blocks=(dropped,)).apply(lm, None)
    with skipping(original, {"blocks": (dropped,)}):
        assert same(outputs(lm.model), outputs(original))
    save(lm, tmp_path / "short")
    assert same(outputs(load(str(tmp_path / "short")).model), outputs(lm.model))


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3-next"])
def test_the_last_attention_must_stay(name: str) -> None:
    lm = hybrid(name)
    with pytest.raises(UserError, match="without block 1, 3: no attention would be left, and its class reads"):
        Shorten(blocks=(1, 3)).check(lm)
    Shorten(blocks=(0, 2)).check(lm)
