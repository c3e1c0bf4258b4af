"""A file and a configuration of other weights are a mistake; what is known to be harmless is none."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

import laconic
from laconic.errors import CheckpointNotice, UserError
from laconic.model import ModelTask, load
from laconic.store import save
from tests.architectures import BLOCKS, BY_NAME, DECODER, SMALL, Architecture, compress_everything, outputs
from tests.tiny_models import ENCODER

assert laconic
ONE = torch.zeros(1)
MASK = torch.ones(1, 1, 8, 8, dtype=torch.bool)


def stored(folder: Path, model: PreTrainedModel, add: Mapping[str, Tensor], without: Iterable[str] = ()) -> Path:
    """`model` in `folder`, with more tensors in its file, or fewer."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(tuple(without))}
    save_file({**kept, **add}, file, {"format": "pt"})
    return folder


def configured(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("name", "count", "tensors", "first"),
    [
        ("bert-classifier", "num_hidden_layers", 16, r"bert\.encoder\.layer\.1\.attention\.output\.LayerNorm\.bias"),
        ("bert-base", "num_hidden_layers", 16, r"encoder\.layer\.1\.attention\.output\.LayerNorm\.bias"),
        # transformers takes the bias of `c_attn` for GPT-2's mask, `attn.bias`, and does not tell of it.
        ("gpt2", "n_layer", 11, r"transformer\.h\.1\.attn\.c_attn\.weight"),
        ("llama", "num_hidden_layers", 9, r"model\.layers\.1\.input_layernorm\.weight"),
        ("t5", "num_decoder_layers", 13, r"decoder\.block\.1\.layer\.0\.SelfAttention\.k\.weight"),
        ("bart", "encoder_layers", 16, r"model\.encoder\.layers\.1\.fc1\.bias"),
    ],
)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_layers_beyond_the_configuration(
    tmp_path: Path, name: str, count: str, tensors: int, first: str, shard: str
) -> None:
    BY_NAME[name].model().save_pretrained(tmp_path, max_shard_size=shard)
    configured(tmp_path, **{count: BLOCKS - 1})
    sentence = (
        rf"^The weights of '.*' do not fit its config\.json: {tensors} of the tensors in the file are not in the model "
        rf"that it describes, the first is '{first}'; use the config\.json that was saved with the weights\.$"
    )
    with pytest.raises(UserError, match=sentence):
        load(str(tmp_path))


def test_layers_are_counted_not_spelled(tmp_path: Path) -> None:
    config = hf.LlamaConfig(**{**DECODER, "num_hidden_layers": 11}, **SMALL)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    configured(tmp_path, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"81 of the tensors in the file .* the first is 'model\.layers\.2\.input"):
        load(str(tmp_path))


def gptj() -> PreTrainedModel:
    config = hf.GPTJConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=40, rotary_dim=4)
    return hf.GPTJForCausalLM(config)


def deepseek() -> PreTrainedModel:
    few = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4}
    config = hf.DeepseekV3Config(**{**ENCODER, **SMALL, **few, **ranks}, first_k_dense_replace=1)
    return hf.DeepseekV3ForCausalLM(config)


HARMLESS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Tensor]]] = {
    "the heads of BERT's pretraining": (
        BY_NAME["bert-masked"].model,
        {
            "cls.seq_relationship.weight": torch.zeros(2, 32),
            "cls.seq_relationship.bias": torch.zeros(2),
            "bert.pooler.dense.weight": torch.zeros(32, 32),
            "bert.pooler.dense.bias": torch.zeros(32),
            "bert.embeddings.position_ids": torch.arange(40)[None],
        },
    ),
    "and of ALBERT's": (
        BY_NAME["albert-masked"].model,
        {"sop_classifier.classifier.weight": torch.zeros(2, 32), "albert.pooler.weight": torch.zeros(32, 32)},
    ),
    "a head for words on a plain encoder": (
        BY_NAME["bert-base"].model,
        {"cls.predictions.bias": torch.zeros(50), "cls.predictions.transform.dense.weight": torch.zeros(32, 32)},
    ),
    "a value head": (BY_NAME["llama"].model, {"v_head.summary.weight": torch.zeros(1, 32)}),
    "rotations by layer": (BY_NAME["llama"].model, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    "GPT-2's mask": (BY_NAME["gpt2"].model, {"transformer.h.0.attn.bias": MASK.float()}),
    "GPT-Neo's": (
        BY_NAME["gpt-neo"].model,
        {"transformer.h.0.attn.attention.bias": MASK, "transformer.h.0.attn.attention.masked_bias": -ONE[0]},
    ),
    "GPT-J's": (gptj, {"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": -ONE[0]}),
    "the layer for further tokens": (deepseek, {"model.layers.61.self_attn.o_proj.weight": torch.zeros(32, 32)}),
    "the bias table that T5 does not read": (
        BY_NAME["t5"].model,
        {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 4)},
    ),
    "the version of fairseq": (BY_NAME["bart"].model, {"model.encoder.version": ONE}),
}


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_known_to_be_harmless(tmp_path: Path, what: str) -> None:
    build, add = HARMLESS[what]
    model = build().eval()
    found = load(str(stored(tmp_path, model, add)))
    assert torch.equal(outputs(found.model), outputs(model))


UNKNOWN: dict[str, tuple[str, str]] = {
    "a bias of the head that the class has not": ("llama", "lm_head.bias"),
    "a bias in a block": ("llama", "model.layers.0.mlp.gate_proj.bias"),
    "a norm in a block": ("bert-masked", "bert.encoder.layer.1.attention.adapter.weight"),
    "something in the head": ("bert-masked", "cls.predictions.transform.second.weight"),
    "something in the base": ("bert-base", "encoder.norm.weight"),
    "saved from the base class": ("gpt2", "h.2.ln_1.weight"),
    "a pooler that the class has": ("bert-classifier", "bert.pooler.second.weight"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_the_model_would_leave_out(tmp_path: Path, what: str) -> None:
    architecture, name = UNKNOWN[what]
    stored(tmp_path, BY_NAME[architecture].model(), {name: torch.ones(1)})
    with pytest.raises(UserError, match=rf"1 of the tensors in the file is not in .* the first is '{name}'"):
        load(str(tmp_path))


MISSING = {
    # A classifier of DeBERTa has its pooler outside of the base model, and nothing without it.
    "deberta-v3-classifier": "pooler.dense.weight",
    "bert-classifier": "bert.pooler.dense.weight",
    "bert-masked": "cls.predictions.transform.dense.weight",
    "llama": "lm_head.weight",
    "marian": "model.encoder.layers.0.fc1.bias",
}


@pytest.mark.parametrize("architecture", MISSING)
def test_what_would_be_drawn_at_random(tmp_path: Path, architecture: str) -> None:
    name = MISSING[architecture]
    stored(tmp_path, BY_NAME[architecture].model(), {}, without=[name])
    with pytest.raises(UserError, match=f"are incomplete: 1 of its tensors is missing, the first is '{name}'"):
        load(str(tmp_path))


def test_a_plain_encoder_in_the_file_of_one_with_a_head(tmp_path: Path) -> None:
    model = BY_NAME["bert-masked"].model()
    model.save_pretrained(tmp_path)
    configured(tmp_path, architectures=["BertModel"])
    found = load(str(tmp_path))
    assert found.task is ModelTask.EMBEDDING
    assert torch.equal(outputs(found.model), outputs(model.base_model))
    configured(tmp_path, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"16 of .* the first is 'bert\.encoder\.layer\.1\."):
        load(str(tmp_path))


@pytest.mark.parametrize("architectures", [None, []])
def test_a_head_that_config_json_names_no_class_of_is_told(tmp_path: Path, architectures: list[str] | None) -> None:
    model = BY_NAME["llama"].model()
    stored(tmp_path, model, {})
    configured(tmp_path, architectures=architectures)
    sentence = (
        r"names no class under architectures, so it is read as a LlamaModel, without 1 of the tensors in the file, the "
        r"first is 'lm_head\.weight'; name the class there to keep them\.$"
    )
    with pytest.warns(CheckpointNotice, match=sentence):
        found = load(str(tmp_path))
    assert found.task is ModelTask.EMBEDDING


def test_of_a_plain_encoder_there_is_nothing_to_tell(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = BY_NAME["bert-base"].model()
    stored(tmp_path, model, {"embeddings.position_ids": torch.arange(40)[None]})
    configured(tmp_path, architectures=None)
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model))
    assert not [one for one in recwarn if issubclass(one.category, CheckpointNotice)]


def test_positions_that_are_computed_and_not_stored(tmp_path: Path) -> None:
    model = BY_NAME["marian"].model()
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "embed_positions" in name]
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model))
    configured(tmp_path, architectures=["MarianModel"])
    assert torch.equal(outputs(load(str(tmp_path)).model), outputs(model.base_model))


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """A masked language model, all of it low rank."""
    save(compress_everything(BY_NAME["bert-masked"].lm(), rank=4), tmp_path / "small")
    return tmp_path / "small"


def without(folder: Path, *names: str) -> None:
    file = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key not in names}, file, {"format": "pt"})


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModel, AutoModelForSequenceClassification])
def test_a_compressed_folder_with_a_part_missing_is_refused_by_every_auto_class(compressed: Path, auto: type) -> None:
    without(compressed, "bert.encoder.layer.1.output.dense.left.weight")
    with pytest.raises(UserError, match=r"incomplete: 1 of its tensors is missing, .*layer\.1\.output\.dense\.left"):
        auto.from_pretrained(compressed)


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModel, AutoModelForSequenceClassification])
def test_and_one_with_more_layers_than_it_says(compressed: Path, auto: type) -> None:
    configured(compressed, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"do not fit its config\.json: .*'bert\.encoder\.layer\.1\.attention"):
        auto.from_pretrained(compressed)


def test_a_new_head_on_a_compressed_model_is_what_the_reader_asks_for(compressed: Path) -> None:
    lm = compress_everything(BY_NAME["bert-masked"].lm(), rank=4)
    model = AutoModelForSequenceClassification.from_pretrained(compressed)
    assert torch.equal(outputs(AutoModel.from_pretrained(compressed)), outputs(lm.model.base_model))
    assert torch.equal(outputs(model.base_model), outputs(lm.model.base_model))
    # The head that it was saved with is none that may be new.
    without(compressed, "cls.predictions.transform.LayerNorm.weight")
    with pytest.raises(UserError, match=r"the first is 'cls\.predictions\.transform\.LayerNorm\.weight'"):
        AutoModelForMaskedLM.from_pretrained(compressed)


def test_a_load_leaves_nothing_behind_in_the_model(compressed: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(compressed)
    assert "_adjust_missing_and_unexpected_keys" not in vars(model)


def test_further_architectures_are_built_as_the_tests_say() -> None:
    for build in (gptj, deepseek):
        assert torch.isfinite(outputs(Architecture("", build).model())).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_codes_that_nothing_explains_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """transformers 5 takes each of them for the weight itself, without a word."""
    name = "model.layers.0.mlp.up_proj.weight"
    model = BY_NAME["llama"].model()
    folder = stored(tmp_path / "m", model, {name: (model.get_parameter(name) * 100).to(dtype)})
    with pytest.raises(UserError, match=f"'{name}' holds whole numbers in the file, and no quantization_config says"):
        load(str(folder))
