"""A folder appears only where it is loaded as the model in memory, whatever the configuration says of single layers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.layers import find_layers
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.tiny_models import HEADS, SMALL, VOCABULARY, WIDTH

LAYERS = 4
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    **SMALL,
}
EXPERTS = {"moe_intermediate_size": WIDTH, "num_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {**DECODER, **EXPERTS, "shared_expert_intermediate_size": WIDTH, "decoder_sparse_step": 2}
DEEPSEEK = {
    **DECODER,
    "moe_intermediate_size": WIDTH,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}
SLIDING = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]

# Each says something of single layers, in a way of its own.
PER_LAYER: dict[str, Callable[[], PreTrainedModel]] = {
    "deepseek-v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**DEEPSEEK)),
    "qwen2-moe": lambda: hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**QWEN_MOE)),
    "qwen3-moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**DECODER, **EXPERTS, mlp_only_layers=[1], decoder_sparse_step=1, head_dim=8)
    ),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**DECODER, no_rope_layers=[1, 0, 1, 0])),
    "qwen3-sliding": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**DECODER, head_dim=8, sliding_window=4, use_sliding_window=True, layer_types=SLIDING)
    ),
}


def build(name: str) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel.of(PER_LAYER[name]().eval())


@pytest.mark.filterwarnings("ignore:The architecture:UserWarning")
@pytest.mark.parametrize("dropped", [(0,), (1,), (2, 3), (0, 2)])
@pytest.mark.parametrize("name", PER_LAYER)
def test_what_is_left_of_layers_of_several_kinds_is_loaded_as_it_is(
    name: str, dropped: tuple[int, ...], tmp_path: Path
) -> None:
    lm = build(name)
    (layers,) = find_layers(lm)
    drop_blocks(lm, layers, dropped)
    save(lm, tmp_path / "out")
    loaded = type(lm.model).from_pretrained(tmp_path / "out")
    tokens = torch.arange(16)[None] % VOCABULARY
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, lm.model(tokens).logits)


@pytest.mark.filterwarnings("ignore:The architecture:UserWarning")
def test_a_layer_of_another_kind_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    lm = build("deepseek-v3")
    # Two dense layers, as the configuration says, and the third would be one of experts.
    lm.model.model.layers[2].mlp = lm.model.model.layers[1].mlp
    with pytest.raises(UserError, match=r"layers.2.mlp'.* DeepseekV3MoE in place of DeepseekV3MLP"):
        save(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_number_that_the_configuration_does_not_say_is_refused(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm()
    lm.model.model.layers[1].self_attn.scaling *= 2
    with pytest.raises(UserError, match=r"layers.1.self_attn' would have scaling"):
        save(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_run_is_not_saved(tmp_path: Path) -> None:
    class Silent(nn.Module):
        def forward(self, _: torch.Tensor) -> None:
            raise RuntimeError("nothing to say")

    lm = BY_NAME["llama"].lm()
    lm.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, inputs: Silent()(*inputs))
    with pytest.raises(UserError, match="does not run, and was not saved: nothing to say"):
        save(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_no_file_holds_keeps_its_numbers(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm().with_dtype(torch.bfloat16)
    save(lm, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    loaded = type(lm.model).from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, lm.model.model.rotary_emb.inv_freq)
    assert outputs(loaded).isfinite().all()
