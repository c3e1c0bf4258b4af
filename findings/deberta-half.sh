#!/usr/bin/env bash
# transformers 5.23.0: DeBERTa (v1) loaded in half precision keeps `q_bias` and `v_bias` in float32, since its class makes
# them so, and no forward pass works. One would expect it to run, as it does after .half(), or a word at loading. It
# matters for every DeBERTa whose config.json says float16 or bfloat16, which is the dtype that it is then loaded in.
# Seen (2026-11-29): expected scalar type Float but found Half
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.2
python - <<'PY'
import torch
from transformers import DebertaConfig, DebertaModel

torch.manual_seed(0)
sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
model = DebertaModel(DebertaConfig(**sizes, relative_attention=True, pos_att_type=["c2p", "p2c"])).half().eval()
tokens = torch.arange(3, 10)[None]
assert model(tokens).last_hidden_state.isfinite().all(), "cast, it runs"
model.save_pretrained("half")
loaded = DebertaModel.from_pretrained("half")
kept = [name for name, part in loaded.named_parameters() if part.dtype == torch.float32]
print("in float32:", kept)
assert kept == ["encoder.layer.0.attention.self.q_bias", "encoder.layer.0.attention.self.v_bias"]
try:
    loaded(tokens)
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("it runs now")
PY
