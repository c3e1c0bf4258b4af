#!/usr/bin/env bash
# transformers 5.23.0: on a machine without a GPU, a fine-grained FP8 checkpoint (DeepSeek-V3, Qwen3-FP8) is dequantized with
# blocks of rows / ⌈rows / 128⌉ instead of 128, since the side of a block is derived from the shapes and `weight_block_size` is not
# looked at. Where the last block is cut off, weights are silently scaled by another block's scale (192 rows: two blocks of
# 96), or loading fails (576 rows, as DeepSeek-V3's kv_a_proj_with_mqa: five do not divide them). One expects 128 and a shorter rest.
# Seen (2026-11-29): {256: 0.0, 192: 0.0209, 576: 'RuntimeError'}
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

BLOCK = 128


def difference(rows):
    """Of a feed-forward of so many rows: loaded by transformers, and its codes times the scale of each 128 x 128 block."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=BLOCK, intermediate_size=rows, num_hidden_layers=1,
                                         num_attention_heads=4, num_key_value_heads=4, dtype="bfloat16")).bfloat16()
    tensors = dict(model.state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    for key in [key for key, tensor in tensors.items() if tensor.dim() == 2 and "_proj" in key]:
        out, inner = tensors[key].shape
        scales = torch.rand(-(-out // BLOCK), -(-inner // BLOCK)) + 0.5
        full = scales.repeat_interleave(BLOCK, 0)[:out].repeat_interleave(BLOCK, 1)[:, :inner]
        tensors[key] = (tensors[key].float() / full).to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = scales
        if key == name:
            right = tensors[key].float() * full
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.quantization_config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
        try:
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        except RuntimeError:
            return "RuntimeError"
    return round((loaded.state_dict()[name] - right).abs().max().item(), 4)


seen = {rows: difference(rows) for rows in (256, 192, 576)}
print(seen)
assert seen[256] == 0 and seen[192] > 0.001 and seen[576] == "RuntimeError"
PY
