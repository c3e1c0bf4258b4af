#!/usr/bin/env bash
# cyllama 0.2.18, the llama.cpp in it, with files of gguf 0.19.0: the original T5 divides what its head reads by the root of its width, as
# its head is the word embedding. Neither the graph of llama.cpp nor its converter does, so every logit is sqrt(width) times too large:
# 23 times in t5-small. Greedy text stays the same, which hides it. Sampled text, probabilities and perplexities are another model's.
# Expected: the logits of transformers, as for T5 1.1 and Flan-T5, which do not divide. It matters to all who sample from such a file.
# Seen (2026-12-01): T5 of width 64: logits are 8.000 times those of transformers, largest probability 0.08 instead of 0.02; Flan-T5: 1.000 times
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 gguf==0.19.0 cyllama==0.2.18
python - <<'PY'
import tempfile

import gguf
import torch
from cyllama.llama import llama_cpp
from transformers import T5Config, T5ForConditionalGeneration

WIDTH, HEADS, ROWS, BLOCKS = 64, 4, 96, 2
SOURCE, TARGET = list(range(3, 20)), [0, 30, 31, 32, 33, 34]


class Model(llama_cpp.LlamaModel):
    """A model with the attribute that `get_logits` of this version reads, and its class lacks."""

    n_vocab = ROWS


def write(model, path):
    """The file with the metadata and the tensors of llama.cpp's conversion/t5.py, and a tokenizer of spare tokens."""
    writer = gguf.GGUFWriter(path, "t5")
    writer.add_context_length(512), writer.add_embedding_length(WIDTH), writer.add_feed_forward_length(96), writer.add_block_count(BLOCKS)
    writer.add_decoder_block_count(BLOCKS), writer.add_head_count(HEADS), writer.add_key_length(16), writer.add_value_length(16)
    writer.add_layer_norm_eps(1e-6), writer.add_relative_attn_buckets_count(32), writer.add_layer_norm_rms_eps(1e-6)
    writer.add_decoder_start_token_id(0), writer.add_vocab_size(ROWS)
    writer.add_tokenizer_model("t5"), writer.add_tokenizer_pre("default")
    writer.add_token_list(["<pad>", "</s>", "<unk>"] + [f"token{index}" for index in range(3, ROWS)])
    writer.add_token_scores([0.0] * ROWS), writer.add_token_types([3, 3, 2] + [1] * (ROWS - 3))
    writer.add_pad_token_id(0), writer.add_eos_token_id(1), writer.add_unk_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, BLOCKS)
    is_tied = model.lm_head.weight is model.shared.weight
    for name, tensor in model.state_dict().items():
        if "embed_tokens" not in name and not (is_tied and name == "lm_head.weight"):
            writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", tensor.contiguous().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def logits(path):
    """llama.cpp's logits at the last position of TARGET."""
    llama_cpp.disable_logging()
    model = Model(path_model=path, verbose=False)
    context = llama_cpp.LlamaContext(model=model, verbose=False)
    source, target = (llama_cpp.LlamaBatch(n_tokens=64, embd=0, n_seq_max=1) for _ in range(2))
    source.set_batch(SOURCE, 0, False)
    context.encode(source)
    target.set_batch(TARGET, 0, False)
    target.set_last_logits_to_true()
    context.decode(target)
    return torch.tensor(context.get_logits()[:ROWS])


def compare(**settings):
    """(llama.cpp's logits by transformers', largest probability in llama.cpp, in transformers)."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=ROWS, d_model=WIDTH, d_kv=16, d_ff=96, num_layers=BLOCKS, num_heads=HEADS, decoder_start_token_id=0, **settings)).eval()
    if not settings.get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(torch.empty(ROWS, WIDTH))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write(model, f"{folder}/t5.gguf")
        theirs = logits(f"{folder}/t5.gguf")
        right = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET])).logits[0, -1]
    assert theirs.argmax() == right.argmax()
    return (theirs @ right / right.square().sum()).item(), theirs.softmax(0).max().item(), right.softmax(0).max().item()


times, sharp, flat = compare()
usual, *_ = compare(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
print(f"T5 of width {WIDTH}: logits are {times:.3f} times those of transformers, largest probability {sharp:.2f} instead of {flat:.2f}; "
      f"Flan-T5: {usual:.3f} times")
assert abs(times / WIDTH**0.5 - 1) < 0.01 and abs(usual - 1) < 0.01
PY
