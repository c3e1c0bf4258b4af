#!/usr/bin/env bash
# mlx-lm 0.32.2 reads `rope_theta` of config.json, and takes 10,000 where that key is missing. transformers 5.23.0 writes
# the base as `rope_parameters.rope_theta` only, so that a Llama, Mistral, Qwen2, OLMoE or DeepSeek-V3 with another base
# (500,000 in Llama 3) is loaded without a word and computes another function. One would expect the logits of
# transformers. It matters for every model that was saved by transformers 5. With a second copy of the base at the top of
# config.json, mlx-lm computes what transformers computes.
# Seen (2026-11-30): as saved: llama 0.9577, qwen2 0.1902, olmoe 1.3998; with rope_theta at the top: below 0.0001
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.2 mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
cat > program.py <<'PY'
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

BASE = 500_000.0
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


def largest_difference(folder, tokens, logits):
    model, _ = load_model(folder)
    return float(abs(np.array(model(mx.array(tokens.numpy())).astype(mx.float32)) - logits).max())


as_saved, with_key = {}, []
for kind in ("llama", "qwen2", "olmoe"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": BASE}, **(EXPERTS if kind == "olmoe" else {}),
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15)
    tokens = torch.randint(5, 60, (1, 24))
    logits = model(tokens).logits.detach().numpy()
    folder = Path(kind)
    model.save_pretrained(folder)
    as_saved[kind] = largest_difference(folder, tokens, logits)
    spelled = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(spelled | {"rope_theta": BASE}))
    with_key.append(largest_difference(folder, tokens, logits))
print("as saved:", ", ".join(f"{kind} {size:.4f}" for kind, size in as_saved.items()) + ";", end=" ")
print(f"with rope_theta at the top: {'below 0.0001' if max(with_key) < 1e-4 else max(with_key)}")
assert min(as_saved.values()) > 0.1, "mlx-lm reads rope_parameters now"
assert max(with_key) < 1e-4
PY
python program.py 2>&1 | grep "^as saved"
