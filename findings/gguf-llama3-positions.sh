#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: reading a GGUF file of Llama 3.1, 3.2 or 3.3, transformers leaves out `rope_freqs.weight`, in which
# llama.cpp's converter stores the scaling of rotary frequencies (Llama 3's `rope_scaling`), so the model computes with unscaled
# ones: at every position and without a warning, not only beyond the first context. One expects the logits of the model it was made from.
# Seen (2026-11-29): with scaling ('default', 0.4637) without ('default', 0.0)
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
python - <<'PY'
import tempfile
from math import pi

import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

WIDTH, HEADS, ROWS = 64, 4, 64
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}

LENGTHS = 2 * pi * 10000.0 ** (torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
SMOOTH = ((8192 / LENGTHS - 1) / 3).clamp(0, 1)
FACTORS = 1 / ((1 - SMOOTH) / 8 + SMOOTH)  # as convert_hf_to_gguf.py computes them

def difference(rope):
    """(rope type that transformers reads, largest difference of logits from those of the model that was written)."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
                         num_key_value_heads=HEADS, max_position_embeddings=16384, rope_parameters=rope)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(f"{folder}/model.gguf", "llama")
        writer.add_context_length(16384), writer.add_embedding_length(WIDTH), writer.add_block_count(2)
        writer.add_feed_forward_length(96), writer.add_head_count(HEADS), writer.add_head_count_kv(HEADS)
        writer.add_layer_norm_rms_eps(1e-6), writer.add_rope_freq_base(10000.0), writer.add_vocab_size(ROWS)
        for name, tensor in model.state_dict().items():
            if ".layers." in name:
                _, _, block, *path, _ = name.split(".")
                if path[-1] in ("q_proj", "k_proj"):
                    tensor = tensor.reshape(HEADS, 2, -1, WIDTH).transpose(1, 2).reshape(tensor.shape)
                name = f"blk.{block}.{NAMES['.'.join(path)]}.weight"
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                    "lm_head.weight": "output.weight"}.get(name, name)
            writer.add_tensor(name, tensor.contiguous().numpy())
        if rope["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", FACTORS.numpy())
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    tokens = torch.randint(ROWS, (1, 200))
    with torch.no_grad():
        right, theirs = model(tokens).logits, read(tokens).logits
    return read.config.rope_parameters["rope_type"], round(((right - theirs).abs().max() / right.abs().max()).item(), 4)

scaled, plain = difference(LLAMA3), difference({"rope_type": "default", "rope_theta": 10000.0})
print("with scaling", scaled, "without", plain)
assert scaled[0] == "default" and scaled[1] > 0.001 and plain[1] < 1e-4
PY
