#!/usr/bin/env bash
# torch 2.13.0: `torch.onnx.export` refuses `1.0 - x` if x has integers, with "Cannot find a compatible OpOverload for
# aten.sub", while torch, `torch.export` and `1 - x` work. One would expect the same promotion to float32. It matters for
# the export of transformers whose code has `1.0 - attention_mask`, such as XLNet: the mask has to be cast to float first.
# Seen (2026-11-30): float mask: exported; 1 - integers: exported; 1.0 - integers: Cannot find a compatible OpOverload
source "$(dirname "$0")/environment.sh" torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.2
python - <<'PY' 2>/dev/null
import contextlib
import io

import torch
from torch import nn


class Subtract(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, mask):
        return self.number - mask


def result(number, mask):
    model = Subtract(number).eval()
    expected = model(mask)
    assert torch.equal(torch.export.export(model, (mask,)).module()(mask), expected)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(model, (mask,), dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        return str(error.__cause__).partition(" for ")[0]
    return "exported"


integers = torch.tensor([[1, 1, 0]])
found = result(1.0, integers.float()), result(1, integers), result(1.0, integers)
print("float mask: {}; 1 - integers: {}; 1.0 - integers: {}".format(*found))
assert found == ("exported", "exported", "Cannot find a compatible OpOverload")
PY
