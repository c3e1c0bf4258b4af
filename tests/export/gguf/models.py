"""Tiny random models of every architecture that a GGUF file is written of, with a tokenizer that llama.cpp knows."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from laconic.model import LanguageModel

ROWS, WIDTH, CONTEXT = 320, 64, 64
TEXTS = ("the cat sat on the mat", " It's 1234 dogs,\n\n  and   rats!  ", "Größe 日本 ¿qué?")
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
FALCON = {
    **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
    "ffn_hidden_size": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = {
    "vocab_size": ROWS,
    "n_embd": WIDTH,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": CONTEXT,
    **{"bos_token_id": 0, "eos_token_id": 1},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * index for index in range(8)],
    "long_factor": [1.0 + 0.5 * index for index in range(8)],
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "llama-wide": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**GROUPED, head_dim=32, attention_bias=True, mlp_bias=True)
    ),
    "llama-3": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=LLAMA3)),
    "llama-linear": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=LINEAR)),
    "llama-yarn": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=YARN)),
    "qwen2-yarn": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**GROUPED, rope_parameters={**YARN, "attention_factor": 1.5})
    ),
    "phi3-short": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(**GROUPED, rope_parameters={**LONG, "original_max_position_embeddings": CONTEXT})
    ),
    "phi3-long": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(**GROUPED, rope_parameters={**LONG, "original_max_position_embeddings": 16})
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=32)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=32)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA, layer_types=KINDS)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
    "starcoder2": lambda: hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**GROUPED)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
    "falcon-keys": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "falcon-one-key": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=4)),
    "qwen2-moe": lambda: hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=48)),
    "olmoe": lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**EXPERTS, norm_topk_prob=True)),
}


def model(name: str) -> LanguageModel:
    """The model of this name. Norms and biases are not those of a new model, so that all of them count."""
    torch.manual_seed(0)
    built = MODELS[name]().eval()
    for path, parameter in built.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        if parameter.dim() == 1 and path.endswith("weight"):
            parameter.data += 0.8
    return LanguageModel.of(built, byte_level())


@cache
def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `ROWS` tokens, by default with the rules of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 10,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """A BPE with a token for each byte and ▁ for a space, as tokenizer.json has those of SentencePiece."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS[:1] * 4, trainers.BpeTrainer(vocab_size=50, show_progress=False))
    own = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *own]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in own
        for cut in range(1, len(piece))
        if piece[:cut] in numbers and piece[cut:] in numbers
    ]
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def exported(lm: LanguageModel, folder: Path) -> Path:
    """The GGUF file of a model."""
    from laconic.export import export

    export(lm, "gguf", folder / "out")
    return folder / "out" / "model.gguf"
