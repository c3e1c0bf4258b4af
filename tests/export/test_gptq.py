"""`laconic export --to gptq`: folders of exact codes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from laconic.errors import CheckpointNotice, UserError
from laconic.export import check_target, export
from laconic.export.gptq.layers import GptqLinear
from laconic.export.gptq.target import NAME
from laconic.formats import Format, Quantized
from laconic.methods import Int8, Rtn, Svd
from laconic.model.loading import load
from tests.export.served_models import compressed

BLOCKS = "blocks"
SCHEMES = [
    Rtn(bits=2, group_size=32),
    Rtn(bits=3, group_size=64),
    Rtn(bits=3, group_size="channel", symmetric=True),
    Rtn(bits=4, group_size=128),
    Rtn(bits=4, group_size="tensor"),
    Rtn(bits=4, group_size=32, symmetric=True),
    Rtn(bits=8, group_size=64),
]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def bits_of(words: Tensor) -> list[list[int]]:
    """The bits of each row of words of 32 bits, the lowest first."""
    return [[(word >> place) & 1 for word in row for place in range(32)] for row in words.tolist()]


def integers(words: Tensor, bits: int) -> Tensor:
    """The integers in the rows of a matrix of words, one bit after the other."""
    rows = bits_of(words)
    return torch.tensor(
        [
            [sum(row[start + k] << k for k in range(bits)) for start in range(0, len(row) - bits + 1, bits)]
            for row in rows
        ]
    )


def decoded(tensors: dict[str, Tensor], path: str, config: dict[str, Any]) -> Tensor:
    """The matrix (out, in) by what the format says, computed without laconic."""
    bits, offset = config["bits"], 1 if config["checkpoint_format"] == "gptq" else 0
    q = integers(tensors[f"{path}.qweight"].T, bits)
    z = integers(tensors[f"{path}.qzeros"], bits) + offset
    group = tensors[f"{path}.g_idx"].long()
    scale = tensors[f"{path}.scales"].float()
    return ((q.T - z[group]) * scale[group]).T


@pytest.mark.parametrize("method", SCHEMES, ids=str)
def test_the_files_hold_the_codes_that_were_computed(tmp_path: Path, method: Rtn) -> None:
    lm = compressed("qwen2", (method, BLOCKS))
    found = export(lm, NAME, tmp_path / "out").model
    config, tensors = config_of(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    assert (config["bits"], config["sym"]) == (method.bits, bool(method.symmetric))
    assert found.agreement.error == 0 and found.agreement.rows > 0
    layers = {name: layer for name, layer in lm.model.named_modules() if isinstance(layer, Quantized)}
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj"):
        assert torch.equal(decoded(tensors, name, config), layers[name].dense())
    with pytest.warns(CheckpointNotice, match="turned into numbers"):
        loaded = load(str(tmp_path / "out")).model
    for name, layer in layers.items():
        assert torch.equal(loaded.get_submodule(name).get_parameter("weight"), layer.dense())
    assert len(layers) == sum(each.count for each in found.layers.values()) == 14


def test_zero_points_of_zero_are_written_as_they_are(tmp_path: Path) -> None:
    """The older layout stores them less one, and engines add it without cutting off the carry."""
    lm = compressed("llama", (Rtn(bits=4, group_size=32), BLOCKS))
    layers = [layer for layer in lm.model.modules() if isinstance(layer, Quantized)]
    assert min(layer.grid.zero.min().item() for layer in layers) > 0
    export(lm, NAME, tmp_path / "old")
    assert config_of(tmp_path / "old")["checkpoint_format"] == "gptq"
    assert layers[0].zeros is not None
    with torch.no_grad():
        layers[0].zeros[0] = 0
    export(lm, NAME, tmp_path / "new")
    assert config_of(tmp_path / "new")["checkpoint_format"] == "gptq_v2"


def test_larger_groups_are_written_as_several(tmp_path: Path) -> None:
    lm = compressed("llama", (Rtn(bits=4, group_size=128), "attention"), (Rtn(bits=4, group_size=64), "ffn"))
    export(lm, NAME, tmp_path / "out")
    assert config_of(tmp_path / "out")["group_size"] == 64
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.q_proj.scales"].shape == (2, 128)


def test_the_folder_in_bfloat16(tmp_path: Path) -> None:
    lm = compressed("mistral", (Rtn(bits=4, group_size=32), BLOCKS), dtype=torch.bfloat16)
    assert export(lm, NAME, tmp_path / "out").model.agreement.error == 0


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ([(Rtn(bits=5), BLOCKS)], r"has codes of 5 bits, .* has 2, 3, 4 and 8: compress with bits=4"),
        ([(Rtn(bits=4, group_size=16), BLOCKS)], r"groups of 16 .*compress with group_size=32"),
        ([(Int8(), BLOCKS)], r"is stored as dynamic-int8, .* or export to compressed-tensors"),
        ([(Rtn(bits=4), "attention")], r"mlp\.\w+' is not quantized, .*compress them alike, or export to compressed"),
        ([(Svd(rank=8), "ffn"), (Rtn(bits=4), "attention")], r"mlp\.\w+' is not quantized"),
        ([(Rtn(bits=4), "attention"), (Rtn(bits=8), "ffn")], r"codes of 4 bits and .* of 8, .* one number of bits"),
        ([], r"has no quantized layer.*compress with rtn or gptq first"),
    ],
)
def test_what_it_cannot_hold_is_refused_with_what_works(methods: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_target(NAME).check_model(compressed("llama", *methods))


def test_nothing_is_left_of_a_folder_that_is_read_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = compressed("llama", (Rtn(bits=4, group_size=32), BLOCKS))
    right = GptqLinear.dense
    monkeypatch.setattr(GptqLinear, "dense", lambda self: right(self) * 1.001)
    with pytest.raises(UserError, match=r"is read otherwise from the files for gptq; nothing was written"):
        export(lm, NAME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert any(isinstance(module, Format) for module in lm.model.modules())
