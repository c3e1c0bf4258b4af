#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.1: `from_pretrained` refuses an asymmetric `pack-quantized` model, which compressed-tensors
# itself writes and vLLM reads: while transformers builds the model on the meta device, the zero points of a layer are not packed, so their
# shape (128, 4) differs from that in the file (16, 4). A symmetric model of the same scheme is read.
# Seen (2026-11-30): symmetric: read; asymmetric: size mismatch
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 compressed-tensors==0.20.1
python - <<'PY'
import tempfile

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def reading(symmetric):
    """'read', or the reason why transformers refuses a model that the package compressed."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
                                         num_key_value_heads=4))
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.data.unflatten(1, (-1, 32))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
            if not symmetric:
                module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        compressor.update_config(folder)
        try:
            AutoModelForCausalLM.from_pretrained(folder)
        except RuntimeError as error:
            return "size mismatch" if "mismatch" in str(error) else str(error)
    return "read"


found = reading(True), reading(False)
print(f"symmetric: {found[0]}; asymmetric: {found[1]}")
assert found == ("read", "size mismatch")
PY
