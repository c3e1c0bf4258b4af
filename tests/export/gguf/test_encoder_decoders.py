"""T5 in GGUF files: both stacks or the encoder alone, the scale of the outputs, and the tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.export import export
from laconic.export.gguf.checks import check_gguf
from laconic.export.gguf.unigram import UNUSED_SCORE
from laconic.export.gguf.vocabulary import TokenType
from laconic.methods import Rtn
from laconic.model import LanguageModel, load
from laconic.store import save
from tests.export.gguf.encoder_decoders import (
    ENCODERS,
    MODELS,
    T5,
    character_map,
    encoder_decoder,
    t5_encoder,
    unigram,
    with_numbers,
)
from tests.export.gguf.models import ROWS, TEXTS, WIDTH, exported

gguf: Any = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a file, as the package gguf reads them."""
    reader = gguf.GGUFReader(file)
    tensors = {each.name: torch.tensor(gguf.dequantize(each.data, each.tensor_type)) for each in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("name", MODELS)
def test_a_file_has_both_stacks(name: str, tmp_path: Path) -> None:
    lm = encoder_decoder(name)
    fields, tensors = read(exported(lm, tmp_path))
    config = lm.model.config
    assert fields["general.architecture"] == "t5"
    assert (fields["t5.block_count"], fields["t5.decoder_block_count"]) == (3, config.num_decoder_layers)
    assert (fields["t5.attention.head_count"], fields["t5.attention.key_length"]) == (4, 32)
    assert fields["t5.attention.relative_buckets_count"] == config.relative_attention_num_buckets
    assert (fields["t5.decoder_start_token_id"], fields["t5.context_length"]) == (0, 512)
    assert ("enc.blk.1.ffn_gate.weight" in tensors) == config.is_gated_act
    assert ("output.weight" in tensors) == (name in ("t5-gated", "mt5"))
    state = lm.model.state_dict()
    last = f"decoder.block.{config.num_decoder_layers - 1}"
    for path, own in {
        f"{last}.layer.1.EncDecAttention.k": f"dec.blk.{config.num_decoder_layers - 1}.cross_attn_k",
        f"{last}.layer.2.DenseReluDense.wo": f"dec.blk.{config.num_decoder_layers - 1}.ffn_down",
        "encoder.block.2.layer.0.SelfAttention.o": "enc.blk.2.attn_o",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "enc.blk.0.attn_rel_b",
        "shared": "token_embd",
    }.items():
        assert torch.equal(tensors[f"{own}.weight"], state[f"{path}.weight"])
    assert ("dec.blk.1.attn_rel_b.weight" in tensors) == (name == "umt5")


@pytest.mark.parametrize(("name", "scale"), [("t5", WIDTH**-0.5), ("umt5", WIDTH**-0.5), ("t5-gated", 1), ("mt5", 1)])
def test_what_transformers_divides_before_the_head_is_in_the_last_norm(name: str, scale: float, tmp_path: Path) -> None:
    lm = encoder_decoder(name)
    _, tensors = read(exported(lm, tmp_path))
    own = lm.model.state_dict()["decoder.final_layer_norm.weight"]
    assert torch.equal(tensors["dec.output_norm.weight"], own * scale)
    assert torch.equal(tensors["enc.output_norm.weight"], lm.model.state_dict()["encoder.final_layer_norm.weight"])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "umt5"])
def test_a_file_is_read_back(name: str, tmp_path: Path) -> None:
    lm = encoder_decoder(name)
    outcome = export(lm, "gguf", tmp_path / "out")
    assert outcome.model.agreement.rows > 10 and outcome.model.agreement.error < 1e-5
    back = load(str(tmp_path / "out" / "model.gguf"))
    save(back, tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    inputs = {"input_ids": torch.arange(3, 30)[None], "decoder_input_ids": torch.arange(3, 9)[None]}
    with torch.no_grad():
        expected, *found = (each.model(**inputs).logits for each in (lm, back, again))
    assert all(torch.allclose(logits, expected, atol=1e-5) for logits in found)
    assert back.tokenizer is not None and back.tokenizer(TEXTS[0])["input_ids"] == unigram()(TEXTS[0])["input_ids"]


def test_a_table_of_positions_in_each_block_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds [\d,]+ numbers, and transformers' T5ForConditionalGeneration takes"):
        load(str(exported(encoder_decoder("umt5"), tmp_path)))


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_an_encoder_is_read_back(name: str, tmp_path: Path) -> None:
    lm = t5_encoder(name)
    back, ids = load(str(exported(lm, tmp_path))), torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(back.model(ids).last_hidden_state, lm.model(ids).last_hidden_state)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_its_pooling(name: str, tmp_path: Path) -> None:
    fields, tensors = read(exported(t5_encoder(name), tmp_path))
    assert fields["general.architecture"] == "t5encoder" and fields["t5encoder.pooling_type"] == 1
    assert "enc.blk.2.ffn_down.weight" in tensors and not [key for key in tensors if key.startswith("dec.")]
    assert "llama-embedding -m model.gguf" in (tmp_path / "out" / "README.md").read_text()


def test_layers_on_grids_become_blocks(tmp_path: Path) -> None:
    lm = encoder_decoder("t5")
    sites = lm.sites(("all",))
    for site in sites:
        layer = Rtn(bits=4, group_size=32, symmetric=True).compress(site.weight().detach(), LayerStats())
        if not site.is_lookup:
            lm.replace(site, layer)
    outcome = export(lm, "gguf", tmp_path / "out")
    assert outcome.model.layers["q4_0 blocks, exact"].count >= 3 * 6 + 3 * 10
    _, tensors = read(tmp_path / "out" / "model.gguf")
    site = next(site for site in lm.sites(("ffn",)) if site.name.startswith("decoder.block.1"))
    assert torch.equal(tensors["dec.blk.1.ffn_up.weight"], site.weight())
    assert "llama-completion -m model.gguf" in (tmp_path / "out" / "README.md").read_text()


def test_the_tokenizer_has_scores_and_the_map_of_characters(tmp_path: Path) -> None:
    fields, _ = read(exported(encoder_decoder("t5"), tmp_path))
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    assert fields["model"] == "t5" and bytes(fields["precompiled_charsmap"]) == character_map()
    assert (fields["add_bos_token"], fields["add_eos_token"], fields["unknown_token_id"]) == (False, True, 2)
    types = dict(zip(fields["tokens"], fields["token_type"], strict=True))
    assert types["<extra_id_1>"] == TokenType.CONTROL and types["<unk>"] == TokenType.UNKNOWN
    assert len(fields["scores"]) == ROWS and fields["scores"][-1] == UNUSED_SCORE


def refusals() -> dict[str, tuple[LanguageModel, str]]:
    """Models that cannot be written, and the reason."""
    other = encoder_decoder("t5")
    other.model.encoder.embed_tokens.weight = torch.nn.Parameter(torch.zeros(ROWS, WIDTH))
    narrow = encoder_decoder("t5")
    channels = narrow.model.decoder.block[1].layer[2].DenseReluDense
    channels.wi.weight.data, channels.wo.weight.data = channels.wi.weight.data[:64], channels.wo.weight.data[:, :64]
    settings = {
        "gate": ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'relu' or 'gated-gelu' .* has 'gated-silu'"),
        "ungated": ({"feed_forward_proj": "gelu"}, "feed_forward_proj .* and the model has 'gelu'"),
        "distance": ({"relative_attention_max_distance": 64}, "max_distance 128, and the model has 64"),
        "deep": ({"num_decoder_layers": 4}, "than its encoder, and the model has 4 and 3; shorten"),
        "start": ({"decoder_start_token_id": None}, "has no decoder_start_token_id"),
    }
    models = {
        name: (with_numbers(hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, **setting}))), reason)
        for name, (setting, reason) in settings.items()
    }
    return {
        **models,
        "base": (
            LanguageModel.of(hf.T5Model(hf.T5Config(**T5)), unigram()),
            "of the kinds t5, mt5, umt5, .* T5Model is",
        ),
        "tables": (other, "one word embedding for encoder and decoder, and 'encoder.embed_tokens.weight' is another"),
        "widths": (narrow, "takes t5 with the same widths in all blocks"),
    }


@pytest.mark.parametrize("name", ["gate", "ungated", "distance", "deep", "start", "base", "tables", "widths"])
def test_what_llama_cpp_cannot_compute_is_refused(name: str, tmp_path: Path) -> None:
    lm, reason = refusals()[name]
    with pytest.raises(UserError, match=reason):
        exported(lm, tmp_path)
    assert not (tmp_path / "out").exists()
    if name not in ("tables", "widths"):
        with pytest.raises(UserError, match=reason):
            check_gguf(lm)
