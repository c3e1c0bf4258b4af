"""Tiny random models of the architectures that resemble one of `tests.tiny_models`, each with what sets it apart."""

from collections.abc import Callable

import transformers as hf
from transformers import PreTrainedModel

from tests.tiny_models import BART, DECODER, ENCODER, GPT2, SMALL, T5


def _decoder(**extra: object) -> dict[str, object]:
    """LLaMA's sizes; the size of a head follows from the width."""
    return {**{key: value for key, value in DECODER.items() if key != "head_dim"}, **SMALL, **extra}


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
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5)),
    "blenderbot-small": lambda: hf.BlenderbotSmallForConditionalGeneration(hf.BlenderbotSmallConfig(**_bart())),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**_bart())),
    "m2m-100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**_bart())),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**_bart())),
    "blenderbot": lambda: hf.BlenderbotForConditionalGeneration(hf.BlenderbotConfig(**_bart())),
}
