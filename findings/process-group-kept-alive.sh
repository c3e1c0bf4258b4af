#!/usr/bin/env bash
# torch 2.13.0: `torch.distributed.nn.functional` evaluates `group.WORLD` as the default argument of its functions when it
# is imported. If that happens while a process group exists, for example because `torch._dynamo` is imported then,
# `destroy_process_group()` does not end the group: the Gloo threads and the TCPStore live until the interpreter ends. One
# would expect that no thread of the group is left. It matters for programs that join a group, work and exit: what the
# threads still hold is released while the interpreter shuts down. Importing the module before the group is made avoids it.
# Seen (2026-11-30): imported before: threads of Gloo ended; imported after: threads of Gloo alive
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.2
cat > program.py <<'PY'
import importlib
import os
import sys
from pathlib import Path

import torch.distributed as dist

MODULE = "torch.distributed.nn.functional"


def threads() -> list[str]:
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if sys.argv[1] == "before":
    importlib.import_module(MODULE)
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/{sys.argv[1]}", rank=0, world_size=1)
assert threads()
importlib.import_module(MODULE)
dist.destroy_process_group()
assert not dist.is_initialized()
print("alive" if threads() else "ended")
PY
before=$(python program.py before)
after=$(python program.py after)
python -c "print('imported before: threads of Gloo $before; imported after: threads of Gloo $after')"
test "$before" = ended
test "$after" = alive
