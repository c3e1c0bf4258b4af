#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: a GGUF file of Gemma 2 has no `query_pre_attn_scalar`, as llama.cpp derives the scale of attention
# from the sizes in the file (the size of a head; in the 27B the width by heads). transformers reads the file with its default of 256
# instead, without a warning: right where heads have 256 channels, and another model everywhere else, such as the 27B (144).
# Seen (2026-11-30): heads of 32: read with 256, logits differ by 0.1616; heads of 256: 0.0000
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
python - <<'PY'
import tempfile

import gguf
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

WIDTH, HEADS, ROWS = 64, 2, 64
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
         "post_feedforward_layernorm": "post_ffw_norm"}


def difference(size):
    """(the scalar that transformers reads, largest difference of logits by the largest logit) for heads of `size` channels."""
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        head_dim=size, query_pre_attn_scalar=size, max_position_embeddings=128, sliding_window=64)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(f"{folder}/model.gguf", "gemma2")
        writer.add_context_length(128), writer.add_embedding_length(WIDTH), writer.add_block_count(2), writer.add_feed_forward_length(96)
        writer.add_head_count(HEADS), writer.add_head_count_kv(HEADS), writer.add_layer_norm_rms_eps(1e-6), writer.add_vocab_size(ROWS)
        writer.add_key_length(size), writer.add_value_length(size), writer.add_rope_freq_base(10000.0), writer.add_sliding_window(64)
        writer.add_attn_logit_softcapping(50.0), writer.add_final_logit_softcapping(30.0)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight":
                continue
            if "norm" in name:
                tensor = tensor + 1
            if ".layers." in name:
                _, _, block, *path, _ = name.split(".")
                name = f"blk.{block}.{NAMES['.'.join(path)]}.weight"
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name, name)
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    tokens = torch.randint(ROWS, (1, 50))
    with torch.no_grad():
        right, theirs = model(tokens).logits, read(tokens).logits
    return read.config.query_pre_attn_scalar, ((right - theirs).abs().max() / right.abs().max()).item()


(scalar, small), (_, usual) = difference(32), difference(256)
print(f"heads of 32: read with {scalar}, logits differ by {small:.4f}; heads of 256: {usual:.4f}")
assert scalar == 256 and small > 0.01 and usual < 1e-3
PY
