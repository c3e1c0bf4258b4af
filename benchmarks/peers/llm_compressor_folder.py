"""Quantize a model with llm-compressor's GPTQ and save it. This runs in its own environment, which has no laconic.

    python llm_compressor_folder.py MODEL ROWS.json OUTPUT

ROWS.json: batches of equally long rows of tokens. The model is loaded in its own dtype and calibrated block by block
(the sequential pipeline), as the documentation does, and saved packed.
"""

import json
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

HEAD = "lm_head"


def main(source: str, rows: str, output: str) -> None:
    torch.set_num_threads(1)
    with open(rows) as file:
        tokens = [torch.tensor(batch) for batch in json.load(file)]
    # Asymmetric grids for groups of 64 with searched ranges, and columns in order of activation: as laconic's `gptq`.
    weights = QuantizationArgs(
        num_bits=4, symmetric=False, strategy="group", group_size=64, observer="mse", actorder="static"
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens]
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    oneshot(
        model=model,
        dataset=DataLoader(batches, batch_size=None),
        recipe=GPTQModifier(config_groups={"all": scheme}, ignore=[HEAD]),
        pipeline="sequential",
        num_calibration_samples=len(batches),
    )
    model.save_pretrained(output, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


main(*sys.argv[1:])
