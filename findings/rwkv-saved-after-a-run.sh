#!/usr/bin/env bash
# transformers 5.23.0: an RWKV that has run once in eval mode has divided the output weights of its blocks by powers of
# two, in place (`rescale_every`); save_pretrained writes them so, and the reloaded model divides once more. One would
# expect the same logits. It matters wherever a model is evaluated and then saved, as after any compression or training.
# Seen (2026-11-29): largest difference 0.6435 of logits up to 1.5624
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.2
python - <<'PY'
import torch
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
config = RwkvConfig(
    vocab_size=50, hidden_size=32, attention_hidden_size=32, intermediate_size=64, num_hidden_layers=12, rescale_every=6
)
tokens = torch.arange(3, 10)[None]


def reloaded(model):
    model.save_pretrained("saved")
    return RwkvForCausalLM.from_pretrained("saved").eval()


with torch.no_grad():
    model = RwkvForCausalLM(config).eval()
    never_run = reloaded(model)(tokens).logits
    logits = model(tokens).logits
    after = reloaded(model)(tokens).logits
print(f"largest difference {(logits - after).abs().max():.4f} of logits up to {logits.abs().max():.4f}")
assert torch.equal(never_run, logits), "saved before its first run it is itself"
assert not torch.allclose(after, logits, atol=1e-2), "saved after it, it is itself now"
PY
