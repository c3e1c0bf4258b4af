"""Small random models as GGUF files, written with llama.cpp's own package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

gguf: Any = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
Kind: Any = gguf.GGMLQuantizationType

VOCABULARY, WIDTH, HEADS, GROUPS, INNER, BLOCKS = 64, 64, 4, 2, 96, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPES = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    **{
        f"blk.{block}.{name}.weight": shape
        for block in range(BLOCKS)
        for name, shape in {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // HEADS * GROUPS, WIDTH),
            "attn_v": (WIDTH // HEADS * GROUPS, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items()
    },
}
PLACES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_llama(
    path: Path,
    kind: Any = Kind.Q8_0,
    *,
    architecture: str = "llama",
    said: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
) -> None:
    """A Llama of two blocks with matrices of `kind`.

    said: further metadata; more: further tensors of float32; leave_out: tensors that are not written.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    for key, value in (said or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(key, value)
    _add_tokenizer(writer)
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        numbers = random.standard_normal(shape, dtype=np.float32) * 0.2
        if name in leave_out:
            continue
        if len(shape) == 1 or kind is Kind.F32:
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    for name, numbers in (more or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any) -> None:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(20)), "▁", *LETTERS]
    words += [f"spare{number}" for number in range(VOCABULARY - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3, *[6] * 20, *[1] * (VOCABULARY - 23)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def numbers_in(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by transformers' names, as llama.cpp's package turns them into numbers."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        found[tensor.name] = numbers.reshape(SHAPES[tensor.name])
    renamed = {"model.embed_tokens.weight": found["token_embd.weight"], "lm_head.weight": found["output.weight"]}
    for block in range(BLOCKS):
        for theirs, ours in PLACES.items():
            matrix = found[f"blk.{block}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                matrix = _turned_back(matrix, HEADS if theirs == "attn_q" else GROUPS)
            renamed[f"model.layers.{block}.{ours}.weight"] = matrix
    return renamed


def _turned_back(matrix: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbours of a head by one angle, transformers the two halves."""
    return matrix.reshape(heads, -1, 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)
