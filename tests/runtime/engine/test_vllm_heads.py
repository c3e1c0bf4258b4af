"""vLLM on a CPU does not compute heads of every size: a model with others is refused before vLLM starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.errors import UserError
from laconic.runtime.engine.vllm import Vllm
from laconic.runtime.engine.vllm_heads import cpu_heads_reason

SIZES = {"hidden_size": 160, "num_attention_heads": 8}


def folder(place: Path, config: dict[str, Any]) -> Path:
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").touch()
    return place


@pytest.mark.parametrize("config", [SIZES, {"text_config": SIZES}, {**SIZES, "hidden_size": 512, "head_dim": 20}])
def test_a_folder_with_other_heads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"heads of 20 channels \(the nearest size that it has is 32\); use the runtime"
    ):
        Vllm.find(folder(tmp_path, config))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Vllm.find(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "config", [{"hidden_size": 896, "num_attention_heads": 14}, {"head_dim": 128}, {"d_model": 20}]
)
def test_what_it_can_run_and_what_the_configuration_does_not_say(tmp_path: Path, config: dict[str, Any]) -> None:
    assert cpu_heads_reason(config) is None
    assert Vllm.find(folder(tmp_path, config)) == tmp_path
