"""`laconic export --to gguf`: the file has the numbers of the model, as an independent reader finds them."""

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from laconic.calibrate import LayerStats
from laconic.cli.main import status
from laconic.compress import Compress
from laconic.errors import CheckpointNotice, UserError
from laconic.export import check_target, export
from laconic.export.gguf.architectures import ARCHITECTURES
from laconic.export.gguf.checks import check_gguf
from laconic.export.gguf.encoding import TYPES, Encoder
from laconic.export.gguf.file import check_numbers
from laconic.export.gguf.metadata import model_metadata
from laconic.export.gguf.rope import rope_metadata
from laconic.export.gguf.shape import Shape
from laconic.formats import Quantized
from laconic.methods import Rtn
from laconic.methods.quantize.blocks import BlockGridName
from laconic.model import LanguageModel, ModelTask, load
from laconic.numerics.grid import GridSpec, fit_grid, quantize
from laconic.store import save
from tests.export.gguf import encoder_decoders
from tests.export.gguf.encoder_decoders import encoder_decoder
from tests.export.gguf.encoders import ENCODERS
from tests.export.gguf.models import GROUPED, LLAMA3, MODELS, YARN, byte_level, exported, model
from tests.runtime.mixed import codebook, int8, lowrank, quantized
from tests.unread import spoil

gguf: Any = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")


def compressed(bits: int, symmetric: bool, group: int = 32) -> LanguageModel:
    """A Llama with all matrices of its blocks on grids."""
    lm = model("llama")
    for site in lm.sites():
        lm.replace(site, quantized(bits, group, symmetric=symmetric)(site.weight().detach()))
    return lm


def wide(tied: bool = False) -> LanguageModel:
    """A Llama whose rows are whole blocks of 256."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    built = hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, **sizes, "tie_word_embeddings": tied})).eval()
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return LanguageModel.of(built, byte_level())


def in_blocks(grid: BlockGridName) -> LanguageModel:
    """The same model with all matrices of its blocks in llama.cpp's blocks of one type."""
    lm = wide()
    for site in lm.sites():
        lm.replace(site, Rtn(grid=grid).compress(site.weight().detach(), LayerStats()))
    return lm


def narrowed(name: str) -> LanguageModel:
    """A model whose second block has fewer heads and channels than the others."""
    lm = model(name)
    block = lm.model.model.layers[1]
    attention, mlp = block.self_attn, block.mlp
    for linear, rows in ((attention.q_proj, 32), (attention.k_proj, 16), (attention.v_proj, 16)):
        linear.weight.data = linear.weight.data[:rows]
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[:rows]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, :32]
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = mlp.gate_proj.weight.data[:64], mlp.up_proj.weight.data[:64]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :64]
    return lm


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    lm = model(name)
    outcome = export(lm, "gguf", tmp_path / "out")
    assert {"model.gguf", "README.md"} < {file.name for file in (tmp_path / "out").iterdir()}
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["general.architecture"].contents() == check_gguf(lm).name
    assert len(fields["tokenizer.ggml.tokens"].contents()) == lm.model.config.vocab_size
    if name in ("llama", "mistral", "qwen2", "starcoder2"):
        assert outcome.model.agreement.rows > 10 and outcome.model.agreement.error < 1e-5


def test_every_entry_has_a_model() -> None:
    causal = {model(name).model.config.model_type for name in MODELS}
    both = {encoder_decoder(name).model.config.model_type for name in encoder_decoders.MODELS}
    for task, kinds in {
        ModelTask.CAUSAL: causal,
        ModelTask.SEQ2SEQ: both,
        ModelTask.EMBEDDING: {*ENCODERS, *encoder_decoders.ENCODERS},
    }.items():
        assert {entry.model_type for entry in ARCHITECTURES if entry.task is task} == kinds


@pytest.mark.parametrize(
    ("bits", "symmetric", "group", "kind"),
    [
        (2, False, 64, "q4_0"),
        (4, True, 32, "q4_0"),
        (4, False, 32, "q5_0"),
        (5, True, 64, "q5_0"),
        (8, True, 32, "q8_0"),
    ],
)
def test_layers_on_grids_become_blocks_with_the_same_numbers(
    bits: int, symmetric: bool, group: int, kind: str, tmp_path: Path
) -> None:
    lm = compressed(bits, symmetric, group)
    file = exported(lm, tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    down = tensors["blk.1.ffn_down.weight"]
    if down.shape[0] % group == 0:
        assert down.tensor_type.name.lower() == kind
    expected = lm.model.get_submodule("model.layers.1.mlp.down_proj").dense()
    assert torch.equal(torch.from_numpy(gguf.dequantize(down.data, down.tensor_type)), expected)
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), pytest.warns(CheckpointNotice, match="holds codes"):
        assert torch.allclose(load(str(file)).model(ids).logits, lm.model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("grid", ["q4_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"])
def test_layers_in_blocks_are_written_as_they_are(grid: BlockGridName, tmp_path: Path) -> None:
    outcome = export(in_blocks(grid), "gguf", tmp_path / "out")
    (label,) = outcome.model.layers
    assert label == f"{grid} blocks, exact"
    assert outcome.model.layers[label].bytes == outcome.model.layers[label].stored_bytes
    assert outcome.model.agreement.error <= outcome.model.agreement.tolerance


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_type_has_the_types_of_llama_cpp(tied: bool, tmp_path: Path) -> None:
    lm = wide(tied)
    Compress(method=Rtn(), allocate="Q4_K_M", targets=("all",)).apply(lm, None)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported(lm, tmp_path)).tensors}
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["blk.0.ffn_up.weight"] == "Q4_K" and types["blk.0.ffn_down.weight"] == "Q6_K"
    assert types["token_embd.weight"] == ("Q6_K" if tied else "Q4_K") and types.get("output.weight", "Q6_K") == "Q6_K"
    assert ("output.weight" in types) == (not tied)
    table = tensors["token_embd.weight"]
    expected = lm.model.get_submodule("model.embed_tokens").dense().T
    assert torch.equal(torch.from_numpy(gguf.dequantize(table.data, table.tensor_type)), expected)


def test_other_layers_are_decoded_and_their_bytes_are_told(tmp_path: Path) -> None:
    lm = model("llama").with_dtype(torch.bfloat16)
    lm.model.bfloat16().float()
    kinds = (lowrank, int8, quantized(4, 16), quantized(4, 32, pruned=True))
    for site, compress in zip(lm.sites(("ffn",)), kinds, strict=False):
        lm.replace(site, compress(site.weight().detach()))
    outcome = export(lm, "gguf", tmp_path / "out")
    layers = outcome.model.layers
    assert layers["decoded, bf16"].count == 2 and layers["q8_0 blocks, exact"].count == 1
    assert layers["decoded, bf16"].bytes > layers["decoded, bf16"].stored_bytes
    assert outcome.model.agreement.error <= outcome.model.agreement.tolerance
    assert "decoded, bf16" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_other_widths_in_each_block_are_arrays(name: str, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(exported(narrowed(name), tmp_path)).fields
    assert fields["general.architecture"].contents() == "deci"
    assert fields["deci.attention.head_count"].contents() == [4, 2, 4]
    assert fields["deci.feed_forward_length"].contents() == [96, 64, 96]


def test_widths_that_no_architecture_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llama.cpp takes qwen3 with the same widths in all blocks"):
        exported(narrowed("qwen3"), tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_file_with_another_number_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = import_module("laconic.export.gguf.target")

    def spoiled(file: Path, tensors: Any, expected: Any) -> None:
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        check_numbers(file, tensors, expected)

    monkeypatch.setattr(place, "check_numbers", spoiled)
    with pytest.raises(UserError, match=r"reads other numbers in the tensor .* nothing was written"):
        exported(model("llama"), tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save(model("qwen2"), tmp_path / "model")
    capsys.readouterr()
    assert status(["export", str(tmp_path / "model"), "--to", "gguf", "-o", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (tmp_path / "a" / "model.gguf").stat().st_size and found["agreement"]["error"] < 1e-5
    assert status(["export", str(tmp_path / "model"), "--to", "gguf", "-o", str(tmp_path / "a")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_single_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model("qwen2"), tmp_path / "model")
    file = tmp_path / "new" / "small.gguf"
    command = ["export", str(tmp_path / "model"), "--to", "gguf", "-o", str(file)]
    assert status(command) == 0
    assert f"{file} for llama.cpp" in capsys.readouterr().out
    assert [found.name for found in file.parent.iterdir() if found.suffix == ".gguf"] == ["small.gguf"]
    assert gguf.GGUFReader(file).fields["general.architecture"].contents() == "qwen2"
    assert status(command) == 2 and "exists already" in capsys.readouterr().err
    place = import_module("laconic.export.gguf.target")
    monkeypatch.setattr(place, "check_numbers", lambda *args: (_ for _ in ()).throw(UserError("other numbers")))
    assert status([*command[:-1], str(tmp_path / "new" / "other.gguf")]) == 2
    assert not list(file.parent.glob("*other*"))


def refusals() -> dict[str, tuple[LanguageModel, str]]:
    """Models that cannot be written, and the reason."""
    bloom = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=320, hidden_size=32, n_layer=1, n_head=4))
    gelu = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, hidden_act="gelu"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    scaled = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=dynamic))
    sharp = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters={**YARN, "beta_fast": 16.0}))
    other = hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, rope_parameters=LLAMA3))
    coded = model("llama")
    site = coded.sites(("ffn",))[0]
    coded.replace(site, codebook(site.weight().detach()))
    tokens = byte_level()
    return {
        "kind": (LanguageModel.of(bloom, tokens), "of the kinds llama, mistral, .*; BloomForCausalLM is none"),
        "activation": (LanguageModel.of(gelu, tokens), "llama with the activation 'silu' or 'swish', .* has 'gelu'"),
        "positions": (LanguageModel.of(scaled, tokens), "of llama takes the rotary scalings default, .* 'dynamic'"),
        "yarn": (LanguageModel.of(sharp, tokens), "computes yarn with beta_fast 32.0, and the model has 16.0"),
        "factors": (
            LanguageModel.of(other, tokens),
            "of qwen2 takes the rotary scalings .* and the model has 'llama3'",
        ),
        "codebook": (coded, "are a codebook, which no block of a GGUF file holds"),
        "tokenizer": (LanguageModel.of(model("llama").model), "holds the tokenizer, and the model has none"),
    }


@pytest.mark.parametrize("name", ["kind", "activation", "positions", "yarn", "factors", "codebook", "tokenizer"])
def test_what_llama_cpp_cannot_compute_is_refused(name: str, tmp_path: Path) -> None:
    lm, reason = refusals()[name]
    with pytest.raises(UserError, match=reason):
        exported(lm, tmp_path)


@pytest.mark.parametrize("name", ["activation", "codebook"])
def test_it_is_refused_before_weights_are_read(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save(refusals()[name][0], tmp_path / "model")
    spoil(tmp_path / "model")
    assert status(["export", str(tmp_path / "model"), "--to", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert {"activation": "'silu'", "codebook": "codebook"}[name] in capsys.readouterr().err


def test_the_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_target("gguf")
    place = import_module("laconic.export.gguf.checks")
    monkeypatch.setattr(place, "require_package", lambda *args, **how: (_ for _ in ()).throw(UserError("no gguf")))
    with pytest.raises(UserError, match="no gguf"):
        check_target("gguf")


def test_a_minimum_that_16_bits_hold_is_kept() -> None:
    weight = torch.arange(16.0).repeat(2)[None] - 4
    grid = fit_grid(weight, GridSpec(4, 32, False, clip=False))
    layer = Quantized.from_codes(quantize(weight, grid), grid, symmetric=False)
    encoded = Encoder(torch.float32).layer(layer)
    assert encoded.kind == "q4_1" and encoded.kind in TYPES
    assert torch.equal(
        torch.from_numpy(gguf.dequantize(encoded.data.numpy(), gguf.GGMLQuantizationType.Q4_1)), layer.dense()
    )


def test_attention_by_yarn_grows_as_the_model_says() -> None:
    shape = Shape((4,) * 3, (2,) * 3, (96,) * 3, 16, 64)
    own, other = (rope_metadata(model(name).model.config, shape) for name in ("llama-yarn", "qwen2-yarn"))
    assert (own["rope.scaling.factor"], own["rope.scaling.original_context_length"]) == (4.0, 16)
    assert own["rope.scaling.attn_factor"] == pytest.approx(1)
    assert other["rope.scaling.attn_factor"] == pytest.approx(1.5 / (1 + 0.1 * math.log(4)))


def test_a_window_that_the_graph_lacks_shortens_the_context() -> None:
    config, shape = model("mistral").model.config, Shape((4,) * 3, (2,) * 3, (96,) * 3, 16, 64)
    entry = next(entry for entry in ARCHITECTURES if entry.model_type == "mistral")
    assert model_metadata(config, entry, shape)["context_length"] == config.sliding_window
