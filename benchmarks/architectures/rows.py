"""The rows of the sweep: for each class of transformers the settings of its configuration besides the common sizes."""

from typing import Any

from benchmarks.architectures.sizes import HEADS, INNER, VOCABULARY, WIDTH

SCORES = {"num_labels": 3}
START = {"decoder_start_token_id": 0}
RELATIVE = {
    "relative_attention": True,
    "max_relative_positions": 8,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BUCKETED = {**RELATIVE, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True}
MASKED = {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 2}
WINDOWED = {"max_position_embeddings": 42}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
RECURRENT = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
    # A linear attention computes chunks of 64 or 256 tokens, so an exported model has to be compared on more of them.
    "max_position_embeddings": 600,
}  # fmt: skip
IMAGE = VOCABULARY - 1
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE - 1,
    "vision_start_token_id": IMAGE - 2,
    "vision_end_token_id": IMAGE - 3,
}
QWEN_TOWER = {"out_hidden_size": WIDTH, "num_heads": HEADS, "intermediate_size": INNER}

ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "Encoders": {
        "BertModel": {},
        "BertForMaskedLM": {},
        "BertForSequenceClassification": SCORES,
        "BertForSequenceClassification, several labels": {**SCORES, "problem_type": "multi_label_classification"},
        "RobertaForMaskedLM": {},
        "RobertaForSequenceClassification": SCORES,
        "XLMRobertaForMaskedLM": {},
        "XLMRobertaForSequenceClassification": SCORES,
        "CamembertForMaskedLM": {},
        "DistilBertForMaskedLM": {},
        "DistilBertForSequenceClassification": SCORES,
        "AlbertForMaskedLM": {"num_hidden_layers": 4},
        "ElectraForMaskedLM": {},
        "ElectraForSequenceClassification": SCORES,
        "DebertaForMaskedLM": RELATIVE,
        "DebertaV2ForMaskedLM": {**RELATIVE, "position_buckets": 4, "norm_rel_ebd": "layer_norm"},
        "DebertaV2ForSequenceClassification": {**BUCKETED, **SCORES},
        "LongformerForMaskedLM": WINDOWED,
        "BigBirdForMaskedLM": {"block_size": 4, "num_random_blocks": 1},
        "BigBirdForMaskedLM, full attention": {"attention_type": "original_full"},
        "MPNetForMaskedLM": {},
        "ModernBertForMaskedLM": MASKED,
        "ModernBertForSequenceClassification": {**MASKED, **SCORES},
        "XLNetLMHeadModel": {},
        "XLNetForSequenceClassification": SCORES,
        "ErnieForMaskedLM": {},
        "MegatronBertForMaskedLM": {},
        "RoFormerForMaskedLM": {},
        "EsmForMaskedLM": {"mask_token_id": 3, "position_embedding_type": "rotary"},
        "MobileBertForMaskedLM": {"intra_bottleneck_size": 16, "embedding_size": 24},
        "XLMWithLMHeadModel": {},
    },
    "Heads of encoders": {
        "BertForTokenClassification": SCORES,
        "BertForQuestionAnswering": {},
        "BertForMultipleChoice": {},
        "RobertaForTokenClassification": SCORES,
        "RobertaForQuestionAnswering": {},
        "RobertaForMultipleChoice": {},
        "DistilBertForTokenClassification": SCORES,
        "DistilBertForQuestionAnswering": {},
        "ElectraForTokenClassification": SCORES,
        "DebertaV2ForTokenClassification": {**BUCKETED, **SCORES},
        "DebertaV2ForQuestionAnswering": BUCKETED,
        "ModernBertForTokenClassification": {**MASKED, **SCORES},
        "XLMRobertaForTokenClassification": SCORES,
        "LongformerForQuestionAnswering": WINDOWED,
    },
    "Decoders": {
        "GPT2LMHeadModel": {},
        "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
        "GPTNeoXForCausalLM": {},
        "GPTJForCausalLM": {},
        "OPTForCausalLM": {},
        "LlamaForCausalLM": {},
        "LlamaForSequenceClassification": SCORES,
        "MistralForCausalLM": {},
        "MinistralForCausalLM": {},
        "Qwen2ForCausalLM": {},
        "Qwen3ForCausalLM": {},
        "GemmaForCausalLM": {},
        "Gemma2ForCausalLM": {},
        "Gemma3ForCausalLM": ALTERNATING,
        "PhiForCausalLM": {},
        "Phi3ForCausalLM": {},
        "OlmoForCausalLM": {},
        "Olmo2ForCausalLM": {},
        "Olmo3ForCausalLM": ALTERNATING,
        "GraniteForCausalLM": {"residual_multiplier": 0.5},
        "SmolLM3ForCausalLM": {"no_rope_layers": [1, 0]},
        "StableLmForCausalLM": {},
        "StableLmForCausalLM, parallel": {"use_parallel_residual": True, "qk_layernorm": True},
        "CohereForCausalLM": {"use_qk_norm": True},
        "Cohere2ForCausalLM": ALTERNATING,
        "Starcoder2ForCausalLM": {},
        "FalconForCausalLM, multi-query": {},
        "FalconForCausalLM, grouped": {"new_decoder_architecture": True},
        "FalconForCausalLM, sequential": {
            "multi_query": False, "num_kv_heads": HEADS, "alibi": True, "parallel_attn": False, "bias": True,
        },
        "BloomForCausalLM": {},
        "GPTBigCodeForCausalLM": {},
        "GPTBigCodeForCausalLM, all heads": {"multi_query": False},
        "MptForCausalLM": {"expansion_ratio": 2},
        "CodeGenForCausalLM": {"n_inner": INNER},
        "GlmForCausalLM": {},
        "Glm4ForCausalLM": {},
        "NemotronForCausalLM": {},
        "Ernie4_5ForCausalLM": {},
        "SeedOssForCausalLM": {},
        "XGLMForCausalLM": {"attention_heads": HEADS},
    },
    "Encoder-decoders": {
        "T5ForConditionalGeneration": START,
        "T5ForConditionalGeneration, gated": {**START, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "MT5ForConditionalGeneration": START,
        "UMT5ForConditionalGeneration": START,
        "BartForConditionalGeneration": {},
        "BartForSequenceClassification": SCORES,
        "MBartForConditionalGeneration": {},
        "M2M100ForConditionalGeneration": {},
        "MarianMTModel": {"decoder_start_token_id": 1},
        "PegasusForConditionalGeneration": {},
        "BlenderbotForConditionalGeneration": {},
        "BlenderbotSmallForConditionalGeneration": {},
        "LEDForConditionalGeneration": {},
        "FSMTForConditionalGeneration": {
            "langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY,
        },
    },
    "Mixtures of experts": {
        "MixtralForCausalLM": {},
        "Qwen2MoeForCausalLM": {},
        "Qwen3MoeForCausalLM": {},
        "OlmoeForCausalLM": {},
        "GptOssForCausalLM": {**ALTERNATING, "rope_parameters": None},
        "DeepseekV2ForCausalLM": {"first_k_dense_replace": 1, "num_key_value_heads": HEADS},
        "DeepseekV3ForCausalLM": {"first_k_dense_replace": 1, "num_key_value_heads": HEADS},
        "GraniteMoeForCausalLM": {},
        "PhimoeForCausalLM": {},
        "Llama4ForCausalLM": {"moe_layers": [1], "no_rope_layers": [1, 0]},
        "Glm4MoeForCausalLM": {"first_k_dense_replace": 1},
        "Ernie4_5_MoeForCausalLM": {"moe_layer_start_index": 0, "moe_layer_end_index": 1},
        "SwitchTransformersForConditionalGeneration": {
            **START, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
        },
    },
    "State spaces and hybrids": {
        "MambaForCausalLM": {},
        "Mamba2ForCausalLM": {"num_heads": 8},
        "FalconMambaForCausalLM": {},
        "RwkvForCausalLM": {},
        "RecurrentGemmaForCausalLM": {"num_hidden_layers": 4, "block_types": ["recurrent", "attention"]},
        "Lfm2ForCausalLM": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        "BambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
        "FalconH1ForCausalLM": {},
        "GraniteMoeHybridForCausalLM, experts": {
            "num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2,
        },
        "JambaForCausalLM, experts": {
            "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "use_mamba_kernels": False,
        },
        "Qwen3NextForCausalLM, experts": RECURRENT,
        "Qwen3_5ForCausalLM": RECURRENT,
        "Qwen3_5MoeForCausalLM, experts": RECURRENT,
        "MiniMaxForCausalLM, experts": RECURRENT,
    },
    "Models of text and images": {
        "LlavaForConditionalGeneration": {
            "text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
        },
        "Qwen2VLForConditionalGeneration": {
            "text_config": {"rope_parameters": SECTIONS}, "vision_config": {"embed_dim": WIDTH}, **QWEN_TOKENS,
        },
        "Qwen2_5_VLForConditionalGeneration": {
            "text_config": {"rope_parameters": SECTIONS}, "vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [1]},
            **QWEN_TOKENS,
        },
        "Qwen3VLForConditionalGeneration": {
            "text_config": {"rope_parameters": SECTIONS},
            "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **QWEN_TOKENS,
        },
        "Gemma3ForConditionalGeneration": {
            "text_config": ALTERNATING, "vision_config": {"model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4, "image_token_index": IMAGE, "boi_token_index": 5, "eoi_token_index": 6,
        },
        "PaliGemmaForConditionalGeneration": {
            "text_config": {"model_type": "gemma"},
            "vision_config": {"model_type": "siglip_vision_model", "projection_dim": WIDTH}, "projection_dim": WIDTH,
            "image_token_index": IMAGE,
        },
        "Idefics3ForConditionalGeneration": {
            "text_config": {"model_type": "llama"}, "vision_config": {}, "image_token_id": IMAGE, "scale_factor": 2,
        },
        "SmolVLMForConditionalGeneration": {
            "text_config": {"model_type": "llama"}, "vision_config": {}, "image_token_id": IMAGE, "scale_factor": 2,
        },
        "InternVLForConditionalGeneration": {
            "text_config": {"model_type": "qwen2"}, "vision_config": {"image_size": [16, 16], "patch_size": [8, 8]},
            "image_token_id": IMAGE,
        },
        "MllamaForConditionalGeneration": {
            "text_config": {"num_hidden_layers": 4, "cross_attention_layers": [1]},
            "vision_config": {
                "num_global_layers": 1, "attention_heads": HEADS, "intermediate_layers_indices": [0],
                "vision_output_dim": 2 * WIDTH, "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1,
            },
            "image_token_index": IMAGE,
        },
    },
}  # fmt: skip
