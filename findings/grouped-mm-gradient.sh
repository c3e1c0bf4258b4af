#!/usr/bin/env bash
# torch 2.13.0 on a CPU: the backward pass of `torch.nn.functional.grouped_mm` refuses a gradient that is an expanded
# tensor. `y.sum().backward()`, the usual first test of a gradient, is an error about strides, while `y.mean()` and
# `y.square().sum()` work. One would expect the gradient of a sum. It matters for mixtures of experts in transformers,
# whose experts run through this function: a hook or a loss that hands on an expanded gradient has to copy it first.
# Seen (2026-11-30): sum: Invalid strides/sizes, got [0, 0] for strides and [16, 16] for sizes; with a copy: equal to a loop
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.2
python - <<'PY'
import torch
from torch.nn.functional import grouped_mm

torch.manual_seed(0)
x = torch.randn(16, 32, requires_grad=True)
weight = torch.randn(4, 32, 16, requires_grad=True)
offsets = torch.tensor([4, 8, 12, 16], dtype=torch.int32)
grouped_mm(x, weight, offs=offsets).mean().backward()
try:
    grouped_mm(x, weight, offs=offsets).sum().backward()
    refusal = "no error"
except RuntimeError as error:
    refusal = str(error)
x.grad = weight.grad = None
y = grouped_mm(x, weight, offs=offsets)
y.backward(torch.ones_like(y))
loop = torch.cat([rows @ w for rows, w in zip(x.detach().split(4), weight, strict=True)])
(of_loop,) = torch.autograd.grad(loop.sum(), weight)
equal = torch.allclose(weight.grad, of_loop, atol=1e-5)
print(f"sum: {refusal}; with a copy: {'equal to a loop' if equal else 'not equal to a loop'}")
assert "strides" in refusal and equal
PY
