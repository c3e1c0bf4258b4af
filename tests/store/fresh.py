"""Run as a process of its own: load the folders of each list that it is given, and write what they compute.

    python fresh.py [laconic]

Each line of stdin is a JSON list of three files: the jobs to read, the outputs and the complaints to write. A job is
{key, folder, auto, dtype}; beside each folder lies its batch. Without the argument laconic stays out of the process.
The complaints are {key: complaint} for what could not be loaded, or not with every tensor in its place. Prints a line
once both files are written.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

DONE = "done"


def main(*with_laconic: str) -> None:
    if with_laconic:
        importlib.import_module("laconic")
    torch.set_num_threads(1)
    for line in sys.stdin:
        jobs_file, outputs_file, complaints_file = map(Path, json.loads(line))
        computed, complaints = load_and_run(json.loads(jobs_file.read_text()))
        save_file(computed, outputs_file)
        complaints_file.write_text(json.dumps(complaints))
        assert with_laconic or "laconic" not in sys.modules
        print(DONE, flush=True)


def load_and_run(jobs: list[dict]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    computed, complaints = {}, {}
    for job in jobs:
        options = {} if job["dtype"] is None else {"dtype": getattr(torch, job["dtype"])}
        try:
            auto = getattr(transformers, job["auto"])
            model, loading = auto.from_pretrained(job["folder"], output_loading_info=True, **options)
        except (OSError, RuntimeError, ValueError) as error:
            complaints[job["key"]] = f"{type(error).__name__}: {error}"
            continue
        if loading["missing_keys"] or loading["mismatched_keys"]:
            complaints[job["key"]] = str(loading)
        with torch.no_grad():
            computed[job["key"]] = model(**load_file(job["folder"] + ".batch"))[0].contiguous()
    return computed, complaints


if __name__ == "__main__":
    main(*sys.argv[1:])
