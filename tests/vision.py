"""Tiny random models of text and images, with as many blocks in the one tower as in the other."""

from collections.abc import Callable

import transformers as hf
from transformers import PreTrainedModel

from tests.tiny_models import BLOCKS, DECODER, ENCODER, HEADS, INNER, SMALL, VOCABULARY, WIDTH

TEXT = {**DECODER, **SMALL}
PLAIN = {name: value for name, value in TEXT.items() if name != "head_dim"}
"""Text settings without the size of a head, for configurations that take it from the width."""
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}
TURNED = {"depth": BLOCKS, "num_heads": HEADS, "patch_size": 8}
"""The towers of Qwen's models."""
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN = {
    "image_token_id": VOCABULARY - 1,
    "video_token_id": VOCABULARY - 2,
    "vision_start_token_id": VOCABULARY - 3,
    "vision_end_token_id": VOCABULARY - 4,
}
IMAGE = VOCABULARY - 1
MLLAMA = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "num_global_layers": 1,
    "attention_heads": HEADS, "image_size": 16, "patch_size": 8, "intermediate_layers_indices": [0],
    "vision_output_dim": 2 * WIDTH, "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1,
}  # fmt: skip


def _clip() -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**VISION, projection_dim=WIDTH)


def _siglip() -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**VISION)


def _llava() -> hf.LlavaConfig:
    return hf.LlavaConfig(vision_config=_clip(), text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE)


def _qwen2() -> hf.Qwen2VLConfig:
    tower = {**TURNED, "embed_dim": WIDTH, "hidden_size": WIDTH}
    return hf.Qwen2VLConfig(vision_config=tower, text_config={**PLAIN, "rope_scaling": SECTIONS}, **QWEN)


def _qwen2_5() -> hf.Qwen2_5_VLConfig:
    tower = {**TURNED, "hidden_size": WIDTH, "intermediate_size": INNER, "out_hidden_size": WIDTH}
    tower["fullatt_block_indexes"] = [1]
    return hf.Qwen2_5_VLConfig(vision_config=tower, text_config={**PLAIN, "rope_scaling": SECTIONS}, **QWEN)


def _qwen3() -> hf.Qwen3VLConfig:
    tower = {**TURNED, "hidden_size": WIDTH, "intermediate_size": INNER, "out_hidden_size": WIDTH}
    tower |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return hf.Qwen3VLConfig(vision_config=tower, text_config={**TEXT, "rope_scaling": SECTIONS}, **QWEN)


def _gemma3() -> hf.Gemma3Config:
    text = hf.Gemma3TextConfig(**TEXT, sliding_window=8)
    return hf.Gemma3Config(
        vision_config=_siglip(), text_config=text, mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=5,
        eoi_token_index=6,
    )  # fmt: skip


def _paligemma() -> hf.PaliGemmaConfig:
    tower = hf.SiglipVisionConfig(**VISION, projection_dim=WIDTH)
    text = hf.GemmaConfig(**TEXT)
    return hf.PaliGemmaConfig(vision_config=tower, text_config=text, projection_dim=WIDTH, image_token_index=IMAGE)


def _internvl() -> hf.InternVLConfig:
    tower = {**VISION, "image_size": [16, 16], "patch_size": [8, 8]}
    return hf.InternVLConfig(vision_config=tower, text_config=hf.Qwen2Config(**PLAIN), image_token_id=IMAGE)


def _mllama() -> hf.MllamaConfig:
    text = {**PLAIN, "num_hidden_layers": 4, "cross_attention_layers": [1]}
    return hf.MllamaConfig(vision_config=MLLAMA, text_config=text, image_token_index=IMAGE)


def _idefics() -> hf.Idefics3Config:
    text = hf.LlamaConfig(**TEXT)
    return hf.Idefics3Config(vision_config=VISION, text_config=text, image_token_id=IMAGE, scale_factor=2)


def _smolvlm() -> hf.SmolVLMConfig:
    text = hf.LlamaConfig(**TEXT)
    return hf.SmolVLMConfig(vision_config=VISION, text_config=text, image_token_id=IMAGE, scale_factor=2)


# The model, the path of its text stack, and that of the tower that text never reaches.
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str, str]] = {
    "llava": (
        lambda: hf.LlavaForConditionalGeneration(_llava()),
        "model.language_model.layers",
        "model.vision_tower.encoder.layers",
    ),
    "qwen2-vl": (
        lambda: hf.Qwen2VLForConditionalGeneration(_qwen2()),
        "model.language_model.layers",
        "model.visual.blocks",
    ),
    "qwen2.5-vl": (
        lambda: hf.Qwen2_5_VLForConditionalGeneration(_qwen2_5()),
        "model.language_model.layers",
        "model.visual.blocks",
    ),
    "qwen3-vl": (
        lambda: hf.Qwen3VLForConditionalGeneration(_qwen3()),
        "model.language_model.layers",
        "model.visual.blocks",
    ),
    "gemma3": (
        lambda: hf.Gemma3ForConditionalGeneration(_gemma3()),
        "model.language_model.layers",
        "model.vision_tower.encoder.layers",
    ),
    "paligemma": (
        lambda: hf.PaliGemmaForConditionalGeneration(_paligemma()),
        "model.language_model.layers",
        "model.vision_tower.encoder.layers",
    ),
    "idefics3": (
        lambda: hf.Idefics3ForConditionalGeneration(_idefics()),
        "model.text_model.layers",
        "model.vision_model.encoder.layers",
    ),
    "smolvlm": (
        lambda: hf.SmolVLMForConditionalGeneration(_smolvlm()),
        "model.text_model.layers",
        "model.vision_model.encoder.layers",
    ),
    "internvl": (
        lambda: hf.InternVLForConditionalGeneration(_internvl()),
        "model.language_model.layers",
        "model.vision_tower.encoder.layer",
    ),
    "mllama": (
        lambda: hf.MllamaForConditionalGeneration(_mllama()),
        "model.language_model.layers",
        "model.vision_model.transformer.layers",
    ),
    "git": (
        lambda: hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **ENCODER, **SMALL)),
        "git.encoder.layer",
        "git.image_encoder.vision_model.encoder.layers",
    ),
}
"""Vision-language models; the last has the configuration of its text, with that of the tower inside."""
