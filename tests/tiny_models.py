"""The smallest random model of each architecture, with everything in it that its configuration can ask for."""

from collections.abc import Callable

import transformers as hf
from transformers import PreTrainedModel

VOCABULARY, WIDTH, HEADS, INNER, BLOCKS = 50, 32, 4, 48, 2
# Where embeddings are narrower than the blocks.
NARROW = 24

# Token numbers of the smallest vocabularies; the defaults lie beyond it.
SMALL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
MASKED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 40,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "n_layers": BLOCKS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "max_position_embeddings": 40,
}
RELATIVE = {
    **ENCODER,
    "relative_attention": True,
    "max_relative_positions": 8,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
# Seven tokens are no multiple of its window.
WINDOWED = {**ENCODER, **SMALL, "attention_window": 4, "max_position_embeddings": 42}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": 40,
}
GPT_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_layers": BLOCKS,
    "num_heads": HEADS,
    "intermediate_size": INNER,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 3,
    "max_position_embeddings": 40,
    **SMALL,
}
OPT = {**ENCODER, **SMALL, "ffn_dim": INNER, "word_embed_proj_dim": NARROW}
DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": BLOCKS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": 40,
}
MARIAN = {**BART, **SMALL, "decoder_vocab_size": VOCABULARY, "decoder_start_token_id": 1}
LED = {
    **BART,
    **SMALL,
    "attention_window": 4,
    "max_encoder_position_embeddings": 40,
    "max_decoder_position_embeddings": 40,
}


def _bert(**extra: object) -> hf.BertConfig:
    return hf.BertConfig(**ENCODER, **extra)


def _albert(layers: int, groups: int = 1, members: int = 1) -> hf.AlbertConfig:
    several = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": members}
    return hf.AlbertConfig(**{**ENCODER, **SMALL, **several}, embedding_size=NARROW)


def _v2(**extra: object) -> hf.DebertaV2Config:
    return hf.DebertaV2Config(**RELATIVE, position_buckets=4, norm_rel_ebd="layer_norm", **extra)


TINY_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-classifier": lambda: hf.BertForSequenceClassification(_bert(num_labels=3)),
    "bert-masked": lambda: hf.BertForMaskedLM(_bert()),
    "bert-masked-untied": lambda: hf.BertForMaskedLM(_bert(tie_word_embeddings=False)),
    "bert-base": lambda: hf.BertModel(_bert()),
    "roberta-masked": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**ENCODER, **SMALL)),
    "distilbert-masked": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(**DISTILBERT)),
    "distilbert-classifier": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(**DISTILBERT, num_labels=1)
    ),
    "albert-masked": lambda: hf.AlbertForMaskedLM(_albert(3)),
    "albert-groups": lambda: hf.AlbertForSequenceClassification(_albert(4, groups=2, members=2)),
    "electra-masked": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**ENCODER, embedding_size=NARROW)),
    "electra-classifier": lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**ENCODER)),
    "deberta-masked": lambda: hf.DebertaForMaskedLM(hf.DebertaConfig(**RELATIVE)),
    "deberta-v2-masked": lambda: hf.DebertaV2ForMaskedLM(_v2()),
    "deberta-v3-classifier": lambda: hf.DebertaV2ForSequenceClassification(_v2(share_att_key=True)),
    "longformer-masked": lambda: hf.LongformerForMaskedLM(hf.LongformerConfig(**WINDOWED)),
    "longformer-classifier": lambda: hf.LongformerForSequenceClassification(hf.LongformerConfig(**WINDOWED)),
    "modernbert-masked": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(**ENCODER, **MASKED, global_attn_every_n_layers=2, local_attention=4)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **SMALL)),
    "gpt2-untied": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **SMALL, tie_word_embeddings=False)),
    "gpt-neo": lambda: hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**GPT_NEO)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**ENCODER, **SMALL)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "opt-norm-after": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, do_layer_norm_before=False)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, **SMALL)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, **SMALL, tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**DECODER, **SMALL)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, **SMALL, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER, **SMALL, tie_word_embeddings=True)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**DECODER, **SMALL)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**DECODER, **SMALL, sliding_window=4)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, **SMALL, sliding_window=4)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**ENCODER, **SMALL, partial_rotary_factor=0.5)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5-gated": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, **SMALL)),
    "bart-untied": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, **SMALL, tie_word_embeddings=False)),
    "bart-scaled": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, **SMALL, scale_embedding=True)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**MARIAN)),
    "marian-two-vocabularies": lambda: hf.MarianMTModel(
        hf.MarianConfig(**MARIAN, share_encoder_decoder_embeddings=False)
    ),
    "led": lambda: hf.LEDForConditionalGeneration(hf.LEDConfig(**LED)),
}
