#!/usr/bin/env bash
# openvino 2026.4.1: on a CPU, a layer with fewer input channels than `DYNAMIC_QUANTIZATION_GROUP_SIZE` is not computed in integers at
# all: its outputs equal, bit for bit, those without dynamic quantization (size 0), and the compiled model still reports the size that
# was asked for. One would expect one group for all channels of the input, as for a size that equals their number. Who sets one large
# size for a whole model (2^64 - 1 means one scale for each token on a GPU) gets no integers, and so no speed, in any layer. It needs a
# CPU that multiplies integers (AVX512 VNNI).
# Seen (2026-12-01): largest difference from size 0: 0.0039 (size 32), 0.0048 (64), 0.0053 (128), 0.0000 (129, 256, 2^64 - 1)
source "$(dirname "$0")/environment.sh" openvino==2026.4.1 numpy==2.4.6
python - <<'PY'
import numpy as np
import openvino as ov
from openvino import opset13 as op

CHANNELS, ROWS, SIZE = 128, 96, "DYNAMIC_QUANTIZATION_GROUP_SIZE"
draw = np.random.default_rng(0)
x = op.parameter([-1, CHANNELS], np.float32)
codes = op.constant(draw.integers(-127, 128, (ROWS, CHANNELS)).astype(np.int8))
scales = op.constant(draw.uniform(0.001, 0.002, (ROWS, 1)).astype(np.float32))
model = ov.Model([op.matmul(x, op.multiply(op.convert(codes, "f32"), scales), False, True)], [x])
tokens = draw.normal(size=(7, CHANNELS)).astype(np.float32)


def run(size):
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", SIZE: str(size)})
    return compiled(tokens)[0], compiled.get_property(SIZE)


plain, _ = run(0)
found = {}
for size in (32, 64, CHANNELS, CHANNELS + 1, 256, 2**64 - 1):
    outputs, reported = run(size)
    found[size] = np.abs(outputs - plain).max() / np.abs(plain).max()
    assert reported == size
    print(f"group size {size}: largest difference from size 0 {found[size]:.4f} of the largest output, reported {reported}")
assert all(difference > 0.001 if size <= CHANNELS else difference == 0 for size, difference in found.items())
PY
