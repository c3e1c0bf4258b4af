"""Code that runs in a process that has imported neither laconic nor transformers before.

To start Python and to import torch and other libraries takes seconds and is the same for all such code. One process
does so once, and is forked for each piece of code.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
STARTED: list[subprocess.Popen[str]] = []
"""The process that is forked, once it was needed."""


def run_fresh(code: str) -> str:
    """Run `code` in a fresh process, check that it ends without an error, and return its stripped standard output."""
    if not STARTED:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from tests.fresh_python import serve; serve()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        STARTED.append(subprocess.Popen(command, env=environment, cwd=tempfile.gettempdir(), text=True, **pipes))
    [process] = STARTED
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(code) + "\n")
    process.stdin.flush()
    status, out, err = json.loads(process.stdout.readline())
    assert status == 0, err
    return out.strip()


def end_fresh() -> None:
    """End the process that is forked, if it was started."""
    while STARTED:
        STARTED.pop().communicate()


def serve() -> None:
    """Run each line of stdin, a JSON string of code, in a fork; print [exit status, stdout, stderr]."""
    import huggingface_hub
    import numpy
    import pydantic
    import safetensors
    import tokenizers
    import torch

    assert huggingface_hub and numpy and pydantic and safetensors and tokenizers
    assert torch.get_num_threads() == 1
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = os.fork()
            if process == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(run_as_main(json.loads(line)))
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        print(json.dumps([status, *texts]), flush=True)


def run_as_main(code: str) -> int:
    """Run `code` as `python -c` does. Its exit status is returned."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    del sys.modules["tests.fresh_python"], sys.modules["tests"]
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
