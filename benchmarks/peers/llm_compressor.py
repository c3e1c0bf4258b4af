"""Compress a model with llm-compressor. This runs in the Python of its own environment, which has no laconic.

    python llm_compressor.py JOBS.json

JOBS.json: {model: folder, rows: [batches of equally long rows of tokens], jobs: [{method, size, pipeline, output}]}.
The linears of each job are written to its `output` as plain weights. A line of JSON for each job has its CPU seconds.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.core import reset_session
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

HEAD = "lm_head"


def modifier(method: str, size: float) -> object:
    """The modifier with the documented settings; ranges of the grids are searched, as laconic's are."""
    if method == "gptq":
        weights = QuantizationArgs(
            num_bits=int(size), symmetric=False, strategy="channel", observer="mse", actorder="static"
        )
        return GPTQModifier(
            config_groups={"all": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=[HEAD]
        )
    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    return kind(sparsity=size, ignore=[f"re:.*{HEAD}"])


def made(model_folder: str, rows: list, job: dict) -> float:
    """Run one job, and return its CPU seconds."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokens = [torch.tensor(batch) for batch in rows]
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens]
    start = time.process_time()
    oneshot(
        model=model,
        dataset=DataLoader(batches, batch_size=None),
        recipe=modifier(job["method"], job["size"]),
        pipeline=job["pipeline"],
        num_calibration_samples=len(batches),
    )
    seconds = time.process_time() - start
    reset_session()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    plain = {name: module.weight.detach().clone() for name, module in linears.items() if name != HEAD}
    save_file(plain, job["output"])
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    versions = {name: version(name) for name in ("llmcompressor", "transformers", "torch")}
    # The first job of a process also imports modules, so it is run twice.
    made(asked["model"], asked["rows"], asked["jobs"][0])
    for job in asked["jobs"]:
        seconds = made(asked["model"], asked["rows"], job)
        print("MADE", json.dumps({**job, "seconds": seconds, "versions": versions}), flush=True)


main()
