#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: a GGUF file of Flan-T5 or T5 1.1 is read with its gate, but with ReLU in place of GELU, as the
# reader sets `is_gated_act` and leaves `feed_forward_proj` at its default `relu`. All tensors have a place, so nothing warns of it.
# Expected: `gated-gelu`, what both models and llama.cpp's graph have. It matters to all who load such a file with `gguf_file=`.
# Seen (2026-12-01): read with relu and a gate: True; logits differ by 0.722; with GELU put in by hand: 0.000000
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
python - <<'PY'
import tempfile

import gguf
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

WIDTH, HEADS, ROWS, BLOCKS = 64, 4, 96, 2
torch.manual_seed(0)
model = T5ForConditionalGeneration(T5Config(
    vocab_size=ROWS, d_model=WIDTH, d_kv=16, d_ff=96, num_layers=BLOCKS, num_heads=HEADS, decoder_start_token_id=0,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
model.lm_head.weight = torch.nn.Parameter(torch.empty(ROWS, WIDTH))
for parameter in model.parameters():
    if parameter.dim() > 1:
        torch.nn.init.normal_(parameter, std=0.2)
with tempfile.TemporaryDirectory() as folder:
    # As llama.cpp's conversion/t5.py writes it.
    writer = gguf.GGUFWriter(f"{folder}/t5.gguf", "t5")
    writer.add_context_length(512), writer.add_embedding_length(WIDTH), writer.add_feed_forward_length(96), writer.add_block_count(BLOCKS)
    writer.add_decoder_block_count(BLOCKS), writer.add_head_count(HEADS), writer.add_key_length(16), writer.add_value_length(16)
    writer.add_layer_norm_eps(1e-6), writer.add_relative_attn_buckets_count(32), writer.add_layer_norm_rms_eps(1e-6)
    writer.add_decoder_start_token_id(0), writer.add_vocab_size(ROWS)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, BLOCKS)
    for name, tensor in model.state_dict().items():
        if "embed_tokens" not in name:
            writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", tensor.contiguous().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    read = AutoModelForSeq2SeqLM.from_pretrained(folder, gguf_file="t5.gguf", dtype=torch.float32).eval()
inputs = {"input_ids": torch.tensor([list(range(3, 20))]), "decoder_input_ids": torch.tensor([[0, 30, 31, 32]])}


def difference():
    with torch.no_grad():
        right, theirs = model(**inputs).logits, read(**inputs).logits
    return ((right - theirs).abs().max() / right.abs().max()).item()


print(f"read with {read.config.feed_forward_proj} and a gate: {read.config.is_gated_act}; logits differ by {difference():.3f}", end="; ")
activation = model.encoder.block[0].layer[1].DenseReluDense.act
for block in (*read.encoder.block, *read.decoder.block):
    block.layer[-1].DenseReluDense.act = activation
print(f"with GELU put in by hand: {difference():.6f}")
assert read.config.feed_forward_proj == "relu" and read.config.is_gated_act and difference() < 1e-5
PY
