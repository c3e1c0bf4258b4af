"""Encoder-decoders in llama.cpp, through the package llama-cpp-python; node-llama-cpp runs none."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor


def encode_decode(file: Path, source: Sequence[int], target: Sequence[int]) -> Float[Tensor, "target vocabulary"]:
    """The logits of an encoder-decoder.

    Args:
        file: the GGUF file.
        source: the tokens that the encoder reads.
        target: the tokens that the decoder reads.
    """
    llama: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 128
    settings.n_threads = settings.n_threads_batch = 1
    context = llama.llama_init_from_model(model, settings)
    assert model and context and llama.llama_model_has_encoder(model) and llama.llama_model_has_decoder(model)
    assert llama.llama_model_decoder_start_token(model) == target[0]
    try:
        read = (ctypes.c_int32 * len(source))(*source)
        assert llama.llama_encode(context, llama.llama_batch_get_one(read, len(source))) == 0
        return _decode(llama, context, model, target)
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)


def _decode(llama: Any, context: Any, model: Any, target: Sequence[int]) -> Float[Tensor, "target vocabulary"]:
    batch = llama.llama_batch_init(len(target), 0, 1)
    batch.n_tokens = len(target)
    for index, token in enumerate(target):
        batch.token[index], batch.pos[index], batch.logits[index] = token, index, True
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    try:
        assert llama.llama_decode(context, batch) == 0
        shape = (len(target), llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
        return torch.from_numpy(np.ctypeslib.as_array(llama.llama_get_logits(context), shape=shape).copy())
    finally:
        llama.llama_batch_free(batch)
