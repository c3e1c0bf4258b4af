#!/usr/bin/env bash
# transformers 5.23.0: the load balancing loss of its mixtures of experts joins the router logits of all blocks before it
# counts. Two blocks that each send every token to one expert, but not to the same, have the loss of a perfect balance.
# One would expect a loss for each block, as in the Switch Transformer that its docstring names. It matters for training
# and healing: a block can starve its experts while the loss is at its minimum.
# Seen (2026-11-30): two collapsed blocks together 1.0000, each alone 2.0000; two balanced blocks together 1.0000
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.2
cat > program.py <<'PY'
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

TOKENS, CERTAIN = 64, 30.0


def logits(chosen):
    """Router logits of a block with two experts that sends each token to the one in `chosen`."""
    return CERTAIN * torch.nn.functional.one_hot(chosen, 2).float()


def loss(*blocks):
    return float(load_balancing_loss_func(blocks, num_experts=2, top_k=1))


first = logits(torch.zeros(TOKENS, dtype=torch.long))
second = logits(torch.ones(TOKENS, dtype=torch.long))
even = logits(torch.arange(TOKENS) % 2)
together, alone, balanced = loss(first, second), loss(first), loss(even, even)
print(f"two collapsed blocks together {together:.4f}, each alone {alone:.4f}; two balanced blocks together {balanced:.4f}")
assert abs(loss(second) - alone) < 1e-6
assert abs(together - balanced) < 1e-6 and alone > 1.5 * balanced
PY
python program.py
