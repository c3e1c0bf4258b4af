"""A model of no known architecture is understood by its structure, and one that cannot be is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.calibrate import Calibration, Fisher, GradCovariance, InputCovariance, collect_stats
from laconic.errors import StructureNotice, UserError
from laconic.model import Group, LanguageModel, Role, check_model, load, load_empty
from laconic.model.anatomy import find_entry
from laconic.model.layers import find_layers
from laconic.store import materialize, save
from tests.architectures import Architecture, batch_for, compress_everything, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.store.readers import in_fresh_process
from tests.tiny_models import BART, BLOCKS, ENCODER, GPT2, HEADS, INNER, SMALL, VOCABULARY, WIDTH
from tests.unread import spoil

XLM = {"vocab_size": VOCABULARY, "emb_dim": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "max_position_embeddings": 40}
FSMT = {**{key: value for key, value in BART.items() if key != "vocab_size"}, **SMALL}
FSMT |= {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["de", "en"], "decoder_start_token_id": 2}

# The model, its linears of attention and of the feed-forward in one block (of each stack), and outside.
UNKNOWN: dict[str, tuple[Callable[[], PreTrainedModel], tuple[int, int, int]]] = {
    "ernie": (lambda: hf.ErnieForMaskedLM(hf.ErnieConfig(**ENCODER, **SMALL)), (4, 2, 2)),
    "roberta-prelayernorm": (
        lambda: hf.RobertaPreLayerNormForSequenceClassification(hf.RobertaPreLayerNormConfig(**ENCODER, **SMALL)),
        (4, 2, 2),
    ),
    "codegen": (lambda: hf.CodeGenForCausalLM(hf.CodeGenConfig(**GPT2, **SMALL, rotary_dim=4)), (2, 2, 1)),
    "persimmon": (lambda: hf.PersimmonForCausalLM(hf.PersimmonConfig(**ENCODER, **SMALL)), (2, 2, 1)),
    "openai-gpt": (lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**GPT2)), (2, 2, 1)),
    "plbart": (lambda: hf.PLBartForConditionalGeneration(hf.PLBartConfig(**BART, **SMALL)), (4 + 8, 2 + 2, 1)),
    "plbart-untied": (
        lambda: hf.PLBartForConditionalGeneration(hf.PLBartConfig(**BART, **SMALL, tie_word_embeddings=False)),
        (4 + 8, 2 + 2, 1),
    ),
    "xlm": (lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(**XLM)), (4, 2, 1)),
    "flaubert": (lambda: hf.FlaubertWithLMHeadModel(hf.FlaubertConfig(**XLM)), (4, 2, 1)),
}
every_unknown = pytest.mark.parametrize("name", UNKNOWN)


def architecture(name: str) -> Architecture:
    return Architecture(name, UNKNOWN[name][0])


def see(model: PreTrainedModel) -> LanguageModel:
    with pytest.warns(StructureNotice, match="has no entry in laconic.model.anatomy; found by structure: "):
        return LanguageModel.of(model)


@every_unknown
def test_every_linear_is_found(name: str) -> None:
    model = architecture(name).model()
    assert find_entry(model.config.model_type) is None
    lm = see(model)
    every = lm.sites(("*",))
    linears = [site.name for site in every if not site.is_lookup]
    assert sorted(linears) == sorted(n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D))
    assert len({site.input for site in every}) == len(every)
    attention, ffn, head = UNKNOWN[name][1]
    counts = {group: sum(site.group is group for site in every) for group in Group}
    assert counts == {
        Group.ATTENTION: attention * BLOCKS,
        Group.FFN: ffn * BLOCKS,
        Group.EXPERTS: 0,
        Group.HEAD: head,
        Group.EMBEDDING: 2 if name == "plbart-untied" else 1,
    }
    assert [site.module for site in every if site.group is Group.HEAD][-1] is (
        model.get_output_embeddings() or model.get_submodule("classifier.out_proj")
    )
    assert all(site.role is Role.OTHER for site in lm.sites(("blocks",)))
    with pytest.raises(UserError, match="The target 'coc:attention' matches no site"):
        lm.sites(("coc:attention",))


@every_unknown
def test_statistics_count_no_padding(name: str) -> None:
    lm = see(architecture(name).model())
    known = collect_stats(
        lm, Calibration(labelled_batches(lm, 1)), {InputCovariance, GradCovariance, Fisher}, lm.sites(("*",))
    )
    tokens = {12, 10, 22} if lm.task.value == "seq2seq" else {12, 2}
    assert {statistics[InputCovariance].count for statistics in known.values()} <= tokens


@every_unknown
def test_replaced_saved_and_reloaded(name: str, tmp_path: Path) -> None:
    lm = compress_everything(see(architecture(name).model()), rank=4)
    folder = tmp_path / name
    save(lm, folder)
    with pytest.warns(StructureNotice):
        again = load(str(folder))
    assert torch.equal(outputs(again.model), outputs(lm.model))
    assert {site.name for site in again.sites(("*",))} == {site.name for site in lm.sites(("*",))}
    torch.testing.assert_close(outputs(materialize(lm.model)), outputs(lm.model), rtol=1e-4, atol=1e-5)


def test_reloaded_in_a_fresh_process(tmp_path: Path) -> None:
    wanted, jobs = {}, []
    for name, auto in (("ernie", "AutoModelForMaskedLM"), ("plbart", "AutoModelForSeq2SeqLM")):
        lm = compress_everything(see(architecture(name).model()), rank=4)
        save(lm, tmp_path / name)
        save_file(batch_for(lm.model), f"{tmp_path / name}.batch")
        jobs.append({"key": name, "folder": str(tmp_path / name), "auto": auto, "dtype": "float32"})
        wanted[name] = outputs(lm.model)
    computed, complaints = in_fresh_process(jobs, tmp_path, laconic=True)
    assert not complaints
    assert all(torch.equal(computed[name], wanted[name]) for name in wanted)


def test_looked_up_without_weights(tmp_path: Path) -> None:
    model = architecture("ernie").model()
    model.save_pretrained(tmp_path)
    spoil(tmp_path)
    check_model(str(tmp_path))
    with pytest.warns(StructureNotice, match=r"'ernie'.*: 6 linears in each block of ernie\.encoder\.layer,"):
        empty = load_empty(str(tmp_path))
    assert [site.name for site in empty.sites(("*",))] == [site.name for site in see(model).sites(("*",))]


@pytest.mark.parametrize("targets", [("attention", "ffn"), ("blocks",), ("all",)])
def test_lists_that_share_the_layers_are_compressed_together(targets: tuple[str, ...]) -> None:
    """XLM has its attentions in one list and its feed-forwards in another."""
    lm = see(architecture("xlm").model())
    assert [(stack.blocks, len(blocks)) for stack, blocks in lm.stacks()] == [
        ("transformer.attentions", BLOCKS), ("transformer.ffns", BLOCKS)
    ]  # fmt: skip
    names = {site.name.removeprefix("transformer.") for site in lm.sites(targets)}
    assert names >= {f"ffns.{number}.lin{part}" for number in range(BLOCKS) for part in (1, 2)}
    assert names >= {f"attentions.{number}.{part}_lin" for number in range(BLOCKS) for part in ("q", "k", "v", "out")}
    assert not lm.coverage(targets).dense


def test_lists_that_share_the_layers_cannot_be_shortened_one_by_one() -> None:
    lm = see(architecture("xlm").model())
    with pytest.raises(UserError, match="The blocks of 'xlm' cannot be dropped: laconic does not know the key"):
        find_layers(lm)


def test_a_list_of_another_length_is_said_to_be_in_no_block() -> None:
    """BLT's decoder has a cross-attention for each of its layers, and its encoder one for two."""
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
    }
    config = hf.BltConfig(
        vocab_size=260,
        patcher_config={**sizes, "vocab_size": 260, "max_position_embeddings": 40},
        encoder_config={**sizes, "vocab_size": 260, "hidden_size_global": WIDTH},
        decoder_config={**sizes, "vocab_size": 260, "hidden_size_global": WIDTH},
        global_config=sizes,
        encoder_hash_byte_group_vocab=50,
    )
    with pytest.warns(
        StructureNotice, match=r"the linears in model\.local_encoder\.cross_attn_layers are in no block; "
    ):
        lm = LanguageModel.of(hf.BltForCausalLM(config))
    blocks = {site.name for site in lm.sites(("blocks",))}
    assert "model.local_decoder.cross_attn_layers.1.q_proj" in blocks
    assert "model.local_encoder.cross_attn_layers.0.q_proj" not in blocks
    assert "model.local_encoder.cross_attn_layers.0.q_proj" in {site.name for site in lm.sites(("head",))}


def test_an_encoder_that_is_no_model_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^The architecture 'fsmt' has no entry in laconic\.model\.anatomy, and no encoder .* known are ",
    ):
        LanguageModel.of(hf.FSMTForConditionalGeneration(hf.FSMTConfig(**FSMT)))
