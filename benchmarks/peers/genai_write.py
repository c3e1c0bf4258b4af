"""Greedy text of an exported folder in OpenVINO GenAI, ONNX Runtime GenAI or optimum-intel, without laconic.

    FOLDER/bin/python benchmarks/peers/genai_write.py openvino-genai EXPORTED PROMPTS.json TOKENS

FOLDER is the environment of genai.sh. PROMPTS.json is a list of prompts, each a list of token ids; for `text` it is a
list of texts. One line is printed for each: "WRITTEN " and a JSON object.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch


def openvino_genai(folder: str, prompt: list[int], tokens: int) -> list[int]:
    """Tokens that OpenVINO GenAI's LLMPipeline writes after a prompt of tokens."""
    genai: Any = import_module("openvino_genai")
    pipeline = genai.LLMPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32", ATTENTION_BACKEND="SDPA")
    config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    return list(pipeline.generate(openvino.Tensor(np.array([prompt])), config).tokens[0])


def openvino_text(folder: str, prompt: str, tokens: int) -> str:
    """Text that OpenVINO GenAI writes after a text, with the tokenizer of the folder."""
    genai: Any = import_module("openvino_genai")
    pipeline = genai.LLMPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32", ATTENTION_BACKEND="SDPA")
    config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False, apply_chat_template=False)
    return str(pipeline.generate(prompt, config))


def onnx_genai(folder: str, prompt: list[int], tokens: int) -> list[int]:
    """Tokens that ONNX Runtime GenAI writes after a prompt of tokens."""
    genai: Any = import_module("onnxruntime_genai")
    model = genai.Model(folder)
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + tokens, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def optimum(folder: str, prompt: list[int], tokens: int) -> list[int]:
    """Tokens that optimum-intel writes after a prompt of tokens, or for the source of an encoder-decoder."""
    intel: Any = import_module("optimum.intel")
    is_seq2seq = (Path(folder) / "openvino_encoder_model.xml").is_file()
    kind = intel.OVModelForSeq2SeqLM if is_seq2seq else intel.OVModelForCausalLM
    model = kind.from_pretrained(folder, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    return found[1:] if is_seq2seq else found[len(prompt) :]


ENGINES = {"openvino-genai": openvino_genai, "text": openvino_text, "onnx-genai": onnx_genai, "optimum": optimum}

if __name__ == "__main__":
    engine, folder, prompts, tokens = sys.argv[1:]
    for prompt in json.loads(Path(prompts).read_text(encoding="utf-8")):
        print("WRITTEN", json.dumps({"written": ENGINES[engine](folder, prompt, int(tokens))}), flush=True)
