#!/usr/bin/env bash
# transformers 5.23.0: MPNet computes the buckets of its relative positions with the function's default of 32, whatever
# `relative_attention_num_buckets` is. A model with 64 never reads half of its table; one with fewer than 32 fails on the
# lookup. One would expect the number of the configuration, as in T5. It matters for anyone who trains an MPNet of their
# own, or counts or prunes its parameters.
# Seen (2026-11-30): 64 buckets: rows 32 to 63 are read by 0 of 300 tokens; the other rows change the outputs
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.2
python - <<'PY'
import torch
from transformers import MPNetConfig, MPNetModel

torch.manual_seed(0)
config = MPNetConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=320, relative_attention_num_buckets=64,
)
model = MPNetModel(config, add_pooling_layer=False).eval()
tokens = torch.randint(5, 50, (1, 300))
table = model.encoder.relative_attention_bias.weight
assert table.shape[0] == 64
with torch.no_grad():
    before = model(tokens).last_hidden_state
    table[32:] += 100 * torch.randn(32, 2)
    unread = model(tokens).last_hidden_state
    changed = int((unread != before).any(-1).sum())
    table[:32] += 100 * torch.randn(32, 2)
    read = model(tokens).last_hidden_state
others = "change the outputs" if not torch.allclose(read, before, atol=1e-3) else "change nothing"
print(f"64 buckets: rows 32 to 63 are read by {changed} of 300 tokens; the other rows {others}")
assert changed == 0 and others == "change the outputs"
PY
