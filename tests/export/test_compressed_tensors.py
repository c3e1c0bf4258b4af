"""`laconic export --to compressed-tensors`: folders that the package decodes bit for bit, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from laconic.cli.main import status
from laconic.compress.depth import Shorten
from laconic.compress.matrices import Compress
from laconic.errors import CheckpointNotice, Notice, UserError
from laconic.export import check_target, export
from laconic.export.compressed_tensors.layers import CompressedLinear
from laconic.export.compressed_tensors.target import NAME
from laconic.formats import Format
from laconic.methods import Int8, Magnitude, Rtn, Svd
from laconic.model import LanguageModel
from laconic.model.loading import load
from laconic.store import save
from tests.export.served_models import MODELS, SCHEMES, SIZES, compressed
from tests.runtime.mixed import codebook
from tests.unread import spoil

pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
pytest.importorskip("accelerate", reason="the package accelerate is not installed")

BLOCKS = "blocks"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12)).logits


def read(folder: Path) -> torch.nn.Module:
    with pytest.warns(CheckpointNotice, match="turned into numbers"):
        return load(str(folder)).model


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_decoded_as_it_was_computed(tmp_path: Path, scheme: str) -> None:
    lm = compressed("qwen2", (SCHEMES[scheme], BLOCKS))
    found = export(lm, NAME, tmp_path / "out").model
    assert found.agreement.error == 0
    # Scales of 16 bits are exact in float32, so these are laconic's own numbers.
    assert found.scale_rounding == 0
    loaded = read(tmp_path / "out")
    for name, layer in lm.model.named_modules():
        if isinstance(layer, Format):
            assert torch.equal(loaded.get_submodule(name).get_parameter("weight"), layer.dense())
    # Where a row has 128 columns, one scale for each row is one for a group of 128.
    layers = found.layers.values()
    assert sum(each.count for each in layers) == 14
    assert sum(each.bytes for each in layers) < 1.2 * sum(each.stored_bytes for each in layers)
    assert config_of(tmp_path / "out")["ignore"] == ["lm_head"]


@pytest.mark.parametrize("architecture", MODELS)
def test_every_architecture(tmp_path: Path, architecture: str) -> None:
    lm = compressed(architecture, (Rtn(bits=4, group_size=32), BLOCKS), dtype=torch.bfloat16)
    found = export(lm, NAME, tmp_path / "out").model
    assert found.agreement.error == 0
    assert found.scale_rounding is not None and 0 < found.scale_rounding < 2**-8
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["4 bits, groups of 64, symmetric", "4 bits, rows, symmetric"])
def test_transformers_computes_the_same_logits_from_the_folder(tmp_path: Path, scheme: str) -> None:
    lm = compressed("llama", (SCHEMES[scheme], BLOCKS))
    expected = logits(lm.model)
    export(lm, NAME, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


def test_transformers_rounds_the_inputs_of_int8(tmp_path: Path) -> None:
    lm = compressed("llama", (Int8(), BLOCKS))
    expected = logits(lm.model)
    export(lm, NAME, tmp_path / "out")
    loaded = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert 0 < (loaded - expected).abs().max() < 0.1 * expected.abs().max()


def test_several_schemes_are_groups_of_names(tmp_path: Path) -> None:
    lm = compressed("llama", (Int8(), "attention"), (Rtn(bits=4, group_size=128), "ffn"))
    export(lm, NAME, tmp_path / "out")
    found = config_of(tmp_path / "out")
    assert found["format"] == "mixed-precision" and found["ignore"] == ["lm_head"]
    formats = {name: group["format"] for group in found["config_groups"].values() for name in group["targets"]}
    assert len(formats) == 14
    assert formats["model.layers.1.mlp.down_proj"] == "pack-quantized"
    assert formats["model.layers.0.self_attn.q_proj"] == "int-quantized"
    torch.testing.assert_close(logits(read(tmp_path / "out")), logits(lm.model), rtol=0.02, atol=0.2)


def test_low_rank_and_shortened_models_keep_their_plain_layers(tmp_path: Path) -> None:
    lm = compressed("llama", (Svd(rank=8), "*.mlp.down_proj"))
    Shorten(blocks=[1]).apply(lm, None)
    Compress(method=Rtn(bits=4, group_size=32), targets=("attention",)).apply(lm, None)
    export(lm, NAME, tmp_path / "out")
    loaded = read(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 1
    assert "model.layers.0.mlp.down_proj" in config_of(tmp_path / "out")["ignore"]
    torch.testing.assert_close(logits(loaded), logits(lm.model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ([(Rtn(bits=3), BLOCKS)], r"has codes of 3 bits, and vLLM reads codes of 4 or 8 bits: compress with bits=4"),
        ([(Rtn(bits=4, group_size=16), BLOCKS)], r"groups of 16 .* reads groups of 32, 64, 128 there: .*group_size=32"),
        ([(Rtn(bits=4, group_size=96), BLOCKS)], r"groups of 96 .*compress with group_size="),
        ([(Magnitude(sparsity=0.5), BLOCKS)], r"is stored as sparse"),
        ([(Magnitude(sparsity=0.5), BLOCKS), (Rtn(bits=4), BLOCKS)], r"is pruned and quantized|is stored as sparse"),
        ([(Rtn(bits=4), "*.v_proj")], r"'.*q_proj' is not quantized and 'v_proj' is W4A16.*compress q_proj, k_proj"),
        ([], r"has no quantized layer.*laconic.materialize"),
    ],
)
def test_what_it_cannot_hold_is_refused_with_what_works(methods: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_target(NAME).check_model(compressed("llama", *methods))


def test_codebooks_are_refused() -> None:
    lm = compressed("llama")
    path = "model.layers.1.mlp.down_proj"
    lm.model.set_submodule(path, codebook(lm.model.get_submodule(path).weight.detach()))
    with pytest.raises(UserError, match=f"The layer '{path}' is stored as codebook, which compressed-tensors does not"):
        check_target(NAME).check_model(lm)


def test_other_layers_than_linears_are_refused() -> None:
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2)
    lm = LanguageModel.of(GPT2LMHeadModel(config))
    Compress(method=Rtn(bits=4, group_size=32), targets=(BLOCKS,)).apply(lm, None)
    with pytest.raises(UserError, match=r"is a Conv1D in GPT2LMHeadModel"):
        check_target(NAME).check_model(lm)


def test_heads_that_no_cpu_computes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "num_attention_heads", 8)
    lm = compressed("llama", (Rtn(bits=4, group_size=32), BLOCKS))
    with pytest.warns(Notice, match=r"no attention with heads of 16 channels"):
        check_target(NAME).check_model(lm)


def test_refused_before_weights_are_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save(compressed("llama", (Rtn(bits=3), BLOCKS)), tmp_path / "model")
    spoil(tmp_path / "model")
    capsys.readouterr()
    assert status(["export", str(tmp_path / "model"), "--to", NAME, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "codes of 3 bits" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = compressed("llama", (Rtn(bits=4, group_size=32), BLOCKS))
    right = CompressedLinear.dense
    monkeypatch.setattr(CompressedLinear, "dense", lambda self: right(self) * 1.001)
    with pytest.raises(UserError, match="nothing was written"):
        export(lm, NAME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(UserError, match=r"by compressed_tensors, not installed here: pip install 'laconic-lm"):
        check_target(NAME)


def test_tasks_are_judged_on_what_was_read(tmp_path: Path, texts: Path) -> None:
    lm = replace(compressed("llama", (Rtn(bits=4, group_size=32), BLOCKS)))
    quality = export(lm, NAME, tmp_path / "out", tasks=(f"perplexity:{texts}",), limit=4).quality
    assert quality is not None and quality.original is not None
    both = [found[f"perplexity:{texts}"]["perplexity"].value for found in (quality.results, quality.original)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)
