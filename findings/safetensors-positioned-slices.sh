#!/usr/bin/env bash
# safetensors 0.8.0: with `safe_open(file, backend="pread")`, a slice of some rows of a tensor reads the whole tensor from
# the file, and every slice of a tensor without elements is refused. The default backend, which maps the file, reads only
# the rows, and returns the empty tensor. One would expect the same of both. It matters for anyone who converts large
# tensors in chunks to save memory, and chose positioned reads for the same reason.
# Seen (2026-11-30): 16 slices of a tensor of 4 MiB read 64 MiB by pread; the slice of an empty tensor: mmap (0,), pread SafetensorError
source "$(dirname "$0")/environment.sh" torch==2.13.0 safetensors==0.8.0 numpy==2.4.2
python - <<'PY'
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

torch.manual_seed(0)
tensors = {"rows": torch.randn(1024, 1024), "empty": torch.empty(0)}
save_file(tensors, "tensors.safetensors")


def bytes_read() -> int:
    [line] = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])


with safe_open("tensors.safetensors", framework="pt", backend="pread") as file:
    before = bytes_read()
    parts = [file.get_slice("rows")[start : start + 64] for start in range(0, 1024, 64)]
    mebibytes = round((bytes_read() - before) / 2**20)
assert torch.equal(torch.cat(parts), tensors["rows"])

outcomes = {}
for backend in ("mmap", "pread"):
    with safe_open("tensors.safetensors", framework="pt", backend=backend) as file:
        try:
            outcomes[backend] = str(tuple(file.get_slice("empty")[:].shape))
        except SafetensorError as error:
            outcomes[backend] = type(error).__name__
shown = ", ".join(f"{backend} {outcome}" for backend, outcome in outcomes.items())
print(f"16 slices of a tensor of 4 MiB read {mebibytes} MiB by pread; the slice of an empty tensor: {shown}")
assert mebibytes == 64
assert outcomes == {"mmap": "(0,)", "pread": "SafetensorError"}
PY
