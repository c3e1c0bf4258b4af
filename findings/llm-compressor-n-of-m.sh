#!/usr/bin/env bash
# llmcompressor 0.14.0.1: in `mask_structure="N:M"` of SparseGPTModifier and WandaPruningModifier N is the number of weights that go of
# every M, not of those that stay, as it is in N:M sparsity of the literature and of hardware; and `sparsity`, given beside it, is not
# looked at. The usual 2:4 hides it; 1:4 beside sparsity=0.75, which agree where N stay, silently leave a quarter of zeros, not three.
# Seen (2026-11-29): SparseGPTModifier 1:4 0.25, 3:4 0.75; WandaPruningModifier 1:4 0.25, 3:4 0.75
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0 llmcompressor==0.14.0.1
export CUDA_VISIBLE_DEVICES=
python - <<'PY'
import tempfile

import torch
from llmcompressor import oneshot
from llmcompressor.core import reset_session
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)


def zeros(kind, pattern):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder)
        tokens = torch.randint(0, 64, (4, 32))
        rows = DataLoader([{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}], batch_size=None)
        recipe = kind(sparsity=0.75, mask_structure=pattern, ignore=["re:.*lm_head"])
        oneshot(model=model, processor=words, dataset=rows, recipe=recipe, num_calibration_samples=1)
        reset_session()
    groups = model.model.layers[0].mlp.up_proj.weight.detach().view(-1, 4)
    assert ((groups == 0).sum(1) == int(pattern[0])).all()
    return (groups == 0).float().mean().item()


for kind in (SparseGPTModifier, WandaPruningModifier):
    print(kind.__name__, *(f"{pattern} {zeros(kind, pattern):.2f}" for pattern in ("1:4", "3:4")), flush=True)
    assert zeros(kind, "1:4") == 0.25 and zeros(kind, "3:4") == 0.75
PY
