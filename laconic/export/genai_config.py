"""`genai_config.json`, the file from which ONNX Runtime GenAI learns how to run a causal model with a cache."""

from typing import Any

from laconic.calibrate.batching import max_positions
from laconic.model import LanguageModel
from laconic.model.stock import text_config
from laconic.model.tokens import special_token_ids, target_vocabulary_size
from laconic.runtime.cache_layout import PAST, PRESENT
from laconic.runtime.engines import ONNX
from laconic.runtime.graph import FILE_NAMES
from laconic.runtime.signature import Signature

FILE = "genai_config.json"
TYPES = {
    "gemma", "gemma2", "granite", "llama", "mistral", "nemotron", "olmo", "phi", "phi3", "qwen2", "qwen3", "smollm3",
}  # fmt: skip
"""The architectures that ONNX Runtime GenAI has names for. All of them are read as any other decoder is."""
GEMMA_3 = "gemma3_text"
ANY_TYPE = "decoder"
"""Its name for a decoder of any other architecture."""
LONGEST = 2**15
"""The context length of a model that does not say how many positions it has."""


def genai_config(lm: LanguageModel, signature: Signature) -> dict[str, Any] | None:
    """The configuration of a causal model for ONNX Runtime GenAI.

    Args:
        lm: the model.
        signature: the inputs and outputs of its graph, with a cache.

    Returns:
        The content of the file; None if the layers of the cache have different sizes, which GenAI cannot read.
    """
    assert signature.cache is not None, "only a model with a cache writes text in GenAI"
    config = text_config(lm.model.config)
    if len(set(signature.cache.layers)) != 1 or signature.cache.layers[0].key != signature.cache.layers[0].value:
        return None
    layer = signature.cache.layers[0]
    length = max_positions(lm) or LONGEST
    plain = {name: name for name in signature.inputs if name not in signature.cache.past}
    kind = config.model_type if config.model_type in TYPES or config.model_type == GEMMA_3 else ANY_TYPE
    end = special_token_ids(config, "eos_token_id") or (0,)
    begin, padding = special_token_ids(config, "bos_token_id"), special_token_ids(config, "pad_token_id")
    return {
        "model": {
            "type": kind,
            "bos_token_id": (*begin, end[0])[0],
            "eos_token_id": end[0] if len(end) == 1 else list(end),
            "pad_token_id": (*padding, end[0])[0],
            "vocab_size": target_vocabulary_size(lm.model),
            "context_length": length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": FILE_NAMES[ONNX],
                "head_size": layer.key,
                "hidden_size": config.hidden_size,
                "inputs": {
                    **plain,
                    "past_key_names": f"{PAST}.%d.key",
                    "past_value_names": f"{PAST}.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": f"{PRESENT}.%d.key",
                    "present_value_names": f"{PRESENT}.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": len(signature.cache.layers),
                "num_key_value_heads": layer.heads,
            },
        },
        "search": {
            "do_sample": False,
            "max_length": length,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            # The graph joins the cache and what is new, so both cannot be one buffer.
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
