#!/usr/bin/env bash
# sentence-transformers 6.2.0: a Dense module is saved with the class of its activation function alone. GELU with approximate="tanh" or
# LeakyReLU(0.5) reload with the defaults of their class without a word, and a class of transformers reloads as Tanh with a warning in the
# log. One would expect the vectors that were trained, or an error at saving. It matters for every model with such a module.
# Seen (2026-11-29): LeakyReLU(negative_slope=0.5) reloads as LeakyReLU(negative_slope=0.01), vectors off by 0.48; QuickGELU as Tanh, by 0.89
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 numpy==2.4.2
python - <<'PY' 2>log
import json
from pathlib import Path

import torch
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn
from transformers.activations import QuickGELUActivation

torch.manual_seed(0)
x = {"sentence_embedding": torch.randn(8, 4)}
for trained in (nn.LeakyReLU(0.5), nn.GELU(approximate="tanh"), QuickGELUActivation()):
    Path("saved").mkdir(exist_ok=True)
    dense = Dense(4, 4, activation_function=trained)
    dense.save("saved")
    loaded = Dense.load("saved")
    off = (loaded(dict(x))["sentence_embedding"] - dense(dict(x))["sentence_embedding"]).abs().max().item()
    named = json.loads(Path("saved/config.json").read_text())["activation_function"]
    print(f"{trained} is saved as '{named}', reloads as {loaded.activation_function}, vectors off by {off:.2g}")
    assert torch.equal(loaded.linear.weight, dense.linear.weight) and off > 1e-5
    default = nn.Tanh if named.startswith("transformers.") else type(trained)
    assert repr(loaded.activation_function) == repr(default())
PY
grep -o "falling back to the default activation function (Tanh)" log
test "$(grep -c "falling back" log)" = 1
