"""The configuration of a T5 in a GGUF file is completed by what llama.cpp computes."""

import pytest
from transformers import LlamaConfig, T5Config

from laconic.model.checkpoints.gguf_t5 import complete_t5


@pytest.mark.parametrize(("name", "activation"), [("ffn_gate", "gelu_new"), ("ffn_up", "relu")])
def test_gate_depth_and_scale(name: str, activation: str) -> None:
    # As transformers reads it.
    config = T5Config(is_gated_act=True)
    metadata = {"general.architecture": "t5", "t5.decoder_block_count": 2}
    complete_t5(config, metadata, [f"enc.blk.0.{name}.weight"])
    assert (config.is_gated_act, config.dense_act_fn) == (name == "ffn_gate", activation)
    assert config.num_decoder_layers == 2 and config.scale_decoder_outputs is False
    complete_t5(config, {"general.architecture": "t5"}, [])
    assert config.num_decoder_layers == config.num_layers


def test_others_stay_as_they_are() -> None:
    config = LlamaConfig()
    before = config.to_dict()
    complete_t5(config, {"general.architecture": "llama"}, ["blk.0.ffn_gate.weight"])
    assert config.to_dict() == before
