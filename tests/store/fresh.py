"""Run in a process of its own: load every folder of a list with the Auto classes named, and write what they compute.

    python fresh.py JOBS.json OUTPUTS.safetensors [laconic]

A job is {key, folder, auto, dtype}; beside each folder lies its batch. Without the third argument laconic stays out of
the process. Prints {key: complaint} for what could not be loaded, or not with every tensor in its place.
"""

import importlib
import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(jobs_file: str, outputs_file: str, *with_laconic: str) -> None:
    if with_laconic:
        importlib.import_module("laconic")
    torch.set_num_threads(1)
    computed, complaints = {}, {}
    with open(jobs_file) as file:
        jobs = json.load(file)
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
    save_file(computed, outputs_file)
    assert with_laconic or "laconic" not in sys.modules
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(*sys.argv[1:])
