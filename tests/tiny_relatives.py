"""Tiny random models of the architectures that resemble one of `tests.tiny_models`, each with what sets it apart."""

from collections.abc import Callable

import transformers as hf
from transformers import PreTrainedModel

from tests.tiny_models import BART, BLOCKS, DECODER, ENCODER, GPT2, HEADS, INNER, SMALL, T5, VOCABULARY, WIDTH


def _decoder(**extra: object) -> dict[str, object]:
    """LLaMA's sizes; the size of a head follows from the width."""
    return {**{key: value for key, value in DECODER.items() if key != "head_dim"}, **SMALL, **extra}


BLOOM = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": HEADS}
MPT = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "max_seq_len": 40}
FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INNER,
}


def _bart() -> dict[str, object]:
    return {**BART, **SMALL, "decoder_start_token_id": 2}


RELATIVES: dict[str, Callable[[], PreTrainedModel]] = {
    "xlm-roberta-masked": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**ENCODER, **SMALL)),
    "camembert-classifier": lambda: hf.CamembertForSequenceClassification(hf.CamembertConfig(**ENCODER, **SMALL)),
    "mpnet-masked": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**ENCODER, **SMALL)),
    "big-bird-masked": lambda: hf.BigBirdForMaskedLM(
        hf.BigBirdConfig(**ENCODER, **SMALL, attention_type="original_full")
    ),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT2, **SMALL, rotary_dim=4)),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(**_decoder(residual_multiplier=0.5, attention_multiplier=0.3, logits_scaling=2.0))
    ),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**_decoder(no_rope_layer_interval=2))),
    "starcoder2": lambda: hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**_decoder())),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**_decoder())),
    "olmo3": lambda: hf.Olmo3ForCausalLM(hf.Olmo3Config(**_decoder(sliding_window=4))),
    "cohere2": lambda: hf.Cohere2ForCausalLM(hf.Cohere2Config(**_decoder(sliding_window=4))),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**_decoder(use_qk_norm=True))),
    "stablelm": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**_decoder(use_qkv_bias=True))),
    "stablelm-parallel": lambda: hf.StableLmForCausalLM(
        hf.StableLmConfig(**_decoder(use_parallel_residual=True, qk_layernorm=True))
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_decoder())),
    "gpt-bigcode": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT2, **SMALL)),
    "gpt-bigcode-heads": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT2, **SMALL, multi_query=False)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**BLOOM, **SMALL)),
    "mpt": lambda: hf.MptForCausalLM(hf.MptConfig(**MPT, **SMALL)),
    # One norm for attention and feed-forward, one for each, and one after the other.
    "falcon-one-key": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON, **SMALL, bias=True)),
    "falcon-keys": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, **SMALL, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "falcon-heads": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, **SMALL, multi_query=False, parallel_attn=False, bias=True)
    ),
    "falcon-alibi": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, **SMALL, multi_query=False, parallel_attn=False, alibi=True)
    ),
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5)),
    "umt5": lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**T5)),
    "blenderbot-small": lambda: hf.BlenderbotSmallForConditionalGeneration(hf.BlenderbotSmallConfig(**_bart())),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**_bart())),
    "m2m-100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**_bart())),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**_bart())),
    "blenderbot": lambda: hf.BlenderbotForConditionalGeneration(hf.BlenderbotConfig(**_bart())),
}
