#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.1: `CompressedTensorsConfig(dequantize=True)` dequantizes every linear layer by the
# scheme of the first config group. In a model of mixed precision (attention in 4 bits, feed-forward in 8, as llm-compressor writes it)
# the layers of the other groups silently get wrong weights; compressed-tensors' own dequantizer matches each layer with its group.
# Seen (2026-11-29): transformers: attention 0.0000, feed-forward 0.0869; compressed-tensors: attention 0.0000, feed-forward 0.0000
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 compressed-tensors==0.20.1
python - <<'PY'
import tempfile

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             apply_quantization_config, fake_quantize)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=192, num_hidden_layers=1,
                                     num_attention_heads=4, num_key_value_heads=2, dtype="bfloat16")).bfloat16()
four = QuantizationArgs(num_bits=4, strategy="group", group_size=32)
eight = QuantizationArgs(num_bits=8, strategy="channel")
config = QuantizationConfig(config_groups={
    "attention": QuantizationScheme(targets=["re:.*self_attn.*"], weights=four, format="pack-quantized"),
    "feed-forward": QuantizationScheme(targets=["re:.*mlp.*"], weights=eight, format="pack-quantized"),
}, ignore=["lm_head"], format="pack-quantized")
apply_quantization_config(model, config)
right = {}
for name, module in model.named_modules():
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is not None:
        groups = module.weight.data.unflatten(1, (-1, scheme.weights.group_size or module.in_features))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        right[f"{name}.weight"] = fake_quantize(module.weight.data, module.weight_scale, None, scheme.weights)
compressor = ModelCompressor(quantization_config=config)
compressor.compress_model(model)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    compressor.update_config(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    own = CompressedTensorsDequantizer(folder, dtype=torch.bfloat16).process(load_file(f"{folder}/model.safetensors"))


def worst(found, part):
    return max((found[name] - tensor).abs().max().item() for name, tensor in right.items() if part in name)


for what, found in (("transformers", theirs.state_dict()), ("compressed-tensors", own)):
    print(f"{what}: attention {worst(found, 'self_attn'):.4f}, feed-forward {worst(found, 'mlp'):.4f}")
assert worst(theirs.state_dict(), "self_attn") == 0 and worst(theirs.state_dict(), "mlp") > 0.01
assert worst(own, "self_attn") == worst(own, "mlp") == 0
PY
