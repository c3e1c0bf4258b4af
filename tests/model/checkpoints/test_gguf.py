"""A GGUF file is a model like another: its numbers are those that llama.cpp's package makes of its codes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from laconic.cli.main import status
from laconic.errors import CheckpointNotice, UserError
from laconic.model import ModelTask, check_model, load, load_empty
from laconic.model.checkpoints.gguf_checks import llama3_factors
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.model.checkpoints.absent import hide
from tests.model.checkpoints.ggufs import Kind, numbers_in, write_llama

CODES = "holds codes, which are turned into numbers and kept as float32"


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_codes_become_the_same_numbers(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "model.gguf"
    write_llama(file, kind)
    with pytest.warns(CheckpointNotice, match=CODES):
        lm = load(str(file))
    numbers = numbers_in(file)
    there = lm.model.state_dict()
    assert {name for name in there if "norm" not in name} == set(numbers)
    assert all(torch.equal(there[name], matrix) for name, matrix in numbers.items())
    assert (lm.task, lm.dtype, type(lm.model)) == (ModelTask.CAUSAL, torch.float32, hf.LlamaForCausalLM)
    assert len(load_empty(str(file)).sites()) == len(lm.sites()) == 14


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16), (Kind.F32, torch.float32)]
)
def test_plain_numbers_keep_their_dtype(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    write_llama(tmp_path / "model.gguf", kind)
    assert load(str(tmp_path / "model.gguf")).dtype is dtype


def test_its_tokenizer_and_what_is_saved(tmp_path: Path) -> None:
    write_llama(tmp_path / "model.gguf")
    with pytest.warns(CheckpointNotice, match=CODES):
        lm = load(str(tmp_path / "model.gguf"))
    assert lm.tokenizer is not None
    assert lm.tokenizer("ab c")["input_ids"] == [1, 23, 24, 25, 23, 26]
    save(lm, tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    assert torch.equal(outputs(again.model), outputs(lm.model))
    assert again.tokenizer is not None and again.tokenizer("ab c") == lm.tokenizer("ab c")
    assert "gguf" not in (tmp_path / "saved" / "config.json").read_text()


def test_the_command_line_takes_the_file(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(tmp_path / "model.gguf")
    words = (
        f"compress {tmp_path}/model.gguf --method kfac-svd --keep 0.5 --data {texts} --samples 4 -o {tmp_path}/small"
    )
    assert status(words.split()) == 0
    assert CODES in capsys.readouterr().err
    assert status(f"evaluate {tmp_path}/small --against {tmp_path}/model.gguf --length 16 --batch 1".split()) == 0


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_llama(folder / "one.gguf", Kind.F32)
    alone = load(str(folder))
    assert alone.model.config.model_type == "llama"
    write_llama(folder / "two.gguf", Kind.F32)
    with pytest.raises(UserError, match=r"holds 2 GGUF files; give one of them: \S+one\.gguf, \S+two\.gguf"):
        check_model(str(folder))
    BY_NAME["gpt2"].model().save_pretrained(folder)
    assert load(str(folder)).model.config.model_type == "gpt2"


def test_positions_of_llama_3_are_scaled(tmp_path: Path) -> None:
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    factors = llama3_factors(frequencies, 8.0)
    assert len(set(factors.tolist())) > 1 and factors.max() == 8
    write_llama(tmp_path / "model.gguf", Kind.F32, more={"rope_freqs.weight": factors.float().numpy()})
    model = load(str(tmp_path / "model.gguf")).model
    assert isinstance(model, hf.LlamaForCausalLM)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(model.model.rotary_emb.inv_freq.double(), frequencies / factors, rtol=1e-6)
    write_llama(tmp_path / "other.gguf", Kind.F32, more={"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)})
    with pytest.raises(
        UserError, match=r"says rope_freqs\.weight = factors .* not Llama 3's, which transformers ignores"
    ):
        check_model(str(tmp_path / "other.gguf"))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            r"says llama\.rope\.scaling\.type = yarn",
        ),
        ({"llama.attention.sliding_window": 32}, r"says llama\.attention\.sliding_window = 32"),
        ({"llama.rope.dimension_count": 8}, r"'\S+_proj\.weight' has shape \(32, 64\) in the file and \(16, 64\)"),
        ({"llama.attention.layer_norm_epsilon": 1e-3}, r"says llama\.attention\.layer_norm_epsilon = 0\.001"),
        ({"split.count": 3}, r"is one of 3 parts; merge them with `llama-gguf-split --merge`"),
        ({"general.type": "adapter"}, "has the type 'adapter' and is not a model"),
    ],
)
def test_what_transformers_leaves_out_is_refused(tmp_path: Path, said: dict[str, object], sentence: str) -> None:
    write_llama(tmp_path / "model.gguf", Kind.F32, said=said)
    with pytest.raises(UserError, match=sentence):
        load(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("said", [{"llama.attention.sliding_window": 128}, {"llama.rope.scaling.type": "none"}])
def test_what_changes_nothing_is_taken(tmp_path: Path, said: dict[str, object]) -> None:
    write_llama(tmp_path / "model.gguf", Kind.F32, said=said)
    check_model(str(tmp_path / "model.gguf"))


def test_tensors_that_are_too_many_or_missing(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_llama(file, Kind.F32, more={"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)})
    with pytest.raises(UserError, match=r"holds \S+ numbers, and transformers' LlamaForCausalLM takes"):
        load(str(file))
    write_llama(file, Kind.F32, leave_out=("blk.1.ffn_up.weight",))
    with pytest.raises(
        UserError, match=r"1 of its tensors is missing, the first is 'model\.layers\.1\.mlp\.up_proj\.weight'"
    ):
        load(str(file))


def test_an_architecture_that_transformers_does_not_read(tmp_path: Path) -> None:
    write_llama(tmp_path / "model.gguf", Kind.F32, architecture="jamba")
    with pytest.raises(UserError, match=r"of the architecture 'jamba' cannot be read by transformers: .*not supported"):
        check_model(str(tmp_path / "model.gguf"))


def test_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_llama(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    with pytest.raises(UserError, match=r"is cut off; fetch it again|damaged, cut off"):
        check_model(str(file))
    for content in (b"GGUF", whole[:100], b"GGUF\xff\xff\xff\xff" + whole[8:]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged, cut off or of another version: .+; fetch it again"):
            check_model(str(file))
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not a GGUF file, as its first bytes show"):
        check_model(str(file))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    write_llama(tmp_path / "model.gguf")
    hide(monkeypatch, package)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install 'laconic-lm\[gguf\]'"):
        check_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            {"leave_out": ("blk.1.ffn_up.weight",)},
            r"incomplete: 1 of its tensors is missing, .*'model\.layers\.1\.mlp\.up",
        ),
        (
            {"more": {"blk.7.ffn_up.weight": np.zeros((2, 3), np.float32)}},
            r"holds 69,958 numbers, .* takes 69,952; use",
        ),
        (
            {"said": {"llama.rope.dimension_count": 8}},
            r"'\S+_proj\.weight' has shape \(32, 64\) in the file and \(16, 64\)",
        ),
        ({"architecture": "nolama"}, r"of the architecture 'nolama' cannot be read by transformers: .* nolama"),
    ],
)
def test_what_its_header_shows_is_told_before_numbers_are_read(
    tmp_path: Path, how: dict[str, Any], sentence: str
) -> None:
    write_llama(tmp_path / "model.gguf", Kind.F32, **how)
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path / "model.gguf"))
