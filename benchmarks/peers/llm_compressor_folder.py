"""Quantize a model with llm-compressor's GPTQ and save it. This runs in its own environment, which has no laconic.

    python llm_compressor_folder.py MODEL ROWS.json OUTPUT [SCHEME]

ROWS.json: batches of equally long rows of tokens. The model is loaded in its own dtype and calibrated block by block
(the sequential pipeline), as the documentation does, and saved packed. SCHEME is a key of `SCHEMES`.
"""

import json
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

HEAD = "lm_head"


def four_bits(group_size: int, symmetric: bool) -> GPTQModifier:
    """Codes of 4 bits with searched ranges, and columns in order of activation, as laconic's `gptq` has them."""
    weights = QuantizationArgs(
        num_bits=4, symmetric=symmetric, strategy="group", group_size=group_size, observer="mse", actorder="static"
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return GPTQModifier(config_groups={"all": scheme}, ignore=[HEAD])


def eight_bits() -> GPTQModifier:
    """int8 weights, and inputs that are rounded to 8 bits for each token: the preset of that name."""
    return GPTQModifier(targets="Linear", scheme="W8A8", ignore=[HEAD])


SCHEMES = {
    "64": lambda: [four_bits(64, symmetric=False)],
    "W4A16": lambda: [four_bits(128, symmetric=True)],
    "W8A8": lambda: [eight_bits()],
    # The strength of the documented example.
    "W8A8, smoothed": lambda: [SmoothQuantModifier(smoothing_strength=0.8), eight_bits()],
}
"""The modifiers by name. `64`, asymmetric groups of 64 columns, is the default."""


def main(source: str, rows: str, output: str, scheme: str = "64") -> None:
    torch.set_num_threads(1)
    with open(rows) as file:
        tokens = [torch.tensor(batch) for batch in json.load(file)]
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens]
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    oneshot(
        model=model,
        dataset=DataLoader(batches, batch_size=None),
        recipe=SCHEMES[scheme](),
        pipeline="sequential",
        num_calibration_samples=len(batches),
    )
    model.save_pretrained(output, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


main(*sys.argv[1:])
