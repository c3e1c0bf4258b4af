"""The text stack of a vision-language model is compressed, and the rest is kept as it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from benchmarks.architectures.functions import check_scales, kill_half, skipping
from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten
from laconic.errors import StructureNotice, UserError
from laconic.methods import Magnitude, Svd
from laconic.model import LanguageModel, ModelTask, check_model, load, load_empty
from laconic.model.anatomy import find_entry
from laconic.model.anatomy.infer import infer_anatomy, uncalled_stacks
from laconic.model.scale_folding import find_absorbers
from laconic.model.usage import trace_usage
from laconic.report.inspection.parts import measure_parts
from laconic.store import save
from tests.architectures import SMALL, VOCABULARY, WIDTH, Architecture, batch_for, outputs
from tests.unread import spoil
from tests.vision import BLOCKS, MODELS, TEXT, VISION

every_model = pytest.mark.parametrize("name", MODELS)
quiet = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")


def seen(name: str) -> LanguageModel:
    return LanguageModel.of(Architecture(name, MODELS[name][0]).model())


@every_model
def test_the_text_stack_is_taken_and_the_tower_is_named(name: str) -> None:
    _, text, tower = MODELS[name]
    with pytest.warns(
        StructureNotice,
        match=f"(linears in each block of|The text stack of) .*; .*{tower}.* are not called for text, and are not",
    ):
        lm = seen(name)
    assert lm.task is ModelTask.CAUSAL
    ((_, blocks),) = lm.stacks()
    assert [path for path, _ in blocks] == [f"{text}.{number}" for number in range(4 if name == "mllama" else BLOCKS)]
    assert all(site.name.startswith(f"{text}.") for site in lm.sites(("blocks",)))
    outside = {site.name for site in lm.sites(("all",)) if site.block is None}
    assert len(outside) in (1, 2), "the word embedding, and the head where it is not tied"
    assert tower in dict(uncalled_stacks(lm.model))
    found = measure_parts(lm).to_json()
    assert [stack["blocks"] for stack in found["stacks"]] == [len(blocks)]
    assert {"path": tower, "blocks": BLOCKS} in found["idle"]


@quiet
@pytest.mark.parametrize(
    ("name", "targets"), [*((name, "all") for name in MODELS), ("llava", "blocks"), ("git", "blocks")]
)
@pytest.mark.slow
def test_the_rest_is_saved_as_it_was(name: str, targets: str, tmp_path: Path) -> None:
    tower = MODELS[name][2]
    lm = seen(name)
    sites = {name for site in lm.sites((targets,)) for name in site.names}
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    Compress(method=Svd(), keep=0.5, targets=(targets,)).apply(lm, None)
    save(lm, tmp_path / name)
    again = load(str(tmp_path / name))
    assert type(again.model) is type(lm.model)
    assert torch.equal(outputs(again.model), outputs(lm.model))
    kept = {name: tensor for name, tensor in before.items() if name.rpartition(".")[0] not in sites}
    after = again.model.state_dict()
    assert any(name.startswith(f"{tower}.") for name in kept)
    assert all(torch.equal(tensor, after[name]) for name, tensor in kept.items())


@quiet
def test_it_is_looked_at_without_weights(tmp_path: Path) -> None:
    seen("llava").model.save_pretrained(tmp_path)
    spoil(tmp_path)
    check_model(str(tmp_path))
    assert {site.name for site in load_empty(str(tmp_path)).sites(("all",))} == {
        site.name for site in seen("llava").sites(("all",))
    }


@quiet
def test_a_projection_of_images_that_is_named_is_refused_with_why() -> None:
    name = "model.multi_modal_projector.linear_1"
    with pytest.raises(
        UserError, match=f"^The matrix '{name}' cannot be compressed: the model does not call it for text; leave it"
    ):
        seen("llava").sites((name,))
    with pytest.raises(
        UserError, match=r"The matrix 'model\.vision_tower.*' cannot be compressed: the model does not call"
    ):
        seen("llava").sites(("*vision_tower*",))


@quiet
def test_what_makes_tensors_of_images_lies_beside_it_again(tmp_path: Path) -> None:
    folder, said = tmp_path / "whole", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
    seen("llava").model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**said, "auto_map": {"AutoProcessor": "x.Y"}}))
    lm = load(str(folder))
    Compress(method=Magnitude(sparsity=0.5)).apply(lm, None)
    save(lm, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "preprocessor_config.json").read_text()) == said
    assert not (tmp_path / "small" / "processor_config.json").exists()


@quiet
def test_where_no_run_shows_it_the_configuration_of_text_does() -> None:
    """Some classes cannot be run without their weights, as these are made to be here."""
    for name in ("llava", "idefics3", "qwen3-vl"):
        whole = MODELS[name][0]()
        unable: type[PreTrainedModel] = type("Unable", (type(whole),), {"forward": _unable})
        model = unable(whole.config)
        assert trace_usage(model) is None
        assert [stack.blocks for stack in infer_anatomy(model).stacks] == [MODELS[name][1]]


@quiet
def test_a_tower_of_images_in_a_model_whose_configuration_is_that_of_text() -> None:
    """IDEFICS of the first version does not run without an image, and its tower is deeper here than its text."""
    vision = {
        "embed_dim": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = hf.IdeficsConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        cross_layer_interval=1,
        vision_config={**vision, "patch_size": 14},
    )
    assert [stack.blocks for stack in infer_anatomy(hf.IdeficsModel(config)).stacks] == [
        "layers",
        "gated_cross_attn_layers",
    ]


def _unable(self: object, **asked: object) -> None:
    raise RuntimeError("numbers are asked for")


ENTRIES = {
    "llava": "llama", "qwen2-vl": "qwen2_vl_text", "qwen2.5-vl": "qwen2_5_vl_text", "qwen3-vl": "qwen3_vl_text",
    "gemma3": "gemma3_text", "paligemma": "gemma", "idefics3": "llama", "smolvlm": "llama", "internvl": "qwen2",
}  # fmt: skip
"""The models whose text stack has an entry, and its architecture."""


@quiet
@pytest.mark.parametrize("name", ENTRIES)
def test_the_text_stack_has_the_parts_of_its_own_architecture(name: str) -> None:
    text = find_entry(ENTRIES[name])
    assert text is not None
    lm = seen(name)
    assert lm.anatomy.stacks[0].feed_forward == text.stacks[0].feed_forward
    assert lm.anatomy.stacks[0].blocks.endswith(f".{text.stacks[0].blocks}")
    inputs = [site.input for site in lm.sites(("blocks",))]
    assert len(set(inputs)) == 4 * BLOCKS < len(inputs)
    assert len(find_absorbers(lm)) == 4 * BLOCKS


@quiet
@pytest.mark.parametrize("name", ENTRIES)
def test_scales_and_dead_parts_leave_its_outputs(name: str) -> None:
    lm = seen(name)
    check_scales(lm.model)
    for part in ("heads", "channels"):
        lm = seen(name)
        tower = {path: tensor.shape for path, tensor in lm.model.state_dict().items() if ".layers." not in path}
        configuration = lm.model.config.vision_config.to_dict()
        kill_half(lm.model, part)
        before = outputs(lm.model)
        step = Narrow(heads=0.5) if part == "heads" else Narrow(channels=0.5, multiple=1)
        step.apply(lm, Calibration([batch_for(lm.model)]))
        assert torch.allclose(outputs(lm.model), before, rtol=1e-4, atol=1e-5)
        assert tower == {path: t.shape for path, t in lm.model.state_dict().items() if ".layers." not in path}
        assert lm.model.config.vision_config.to_dict() == configuration


@quiet
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ENTRIES if name != "llava"] + ["llava"]
)
def test_a_shorter_text_stack_is_a_stock_model_that_skips_the_block(name: str, tmp_path: Path) -> None:
    lm, original = seen(name), seen(name).model
    configuration = lm.model.config.vision_config.to_dict()
    Shorten(blocks=(0,)).apply(lm, None)
    with skipping(original, {"blocks": (0,)}):
        assert torch.allclose(outputs(lm.model), outputs(original), rtol=1e-5, atol=1e-6)
    save(lm, tmp_path / name)
    stored = json.loads((tmp_path / name / "config.json").read_text())
    assert "num_hidden_layers" not in stored and stored["text_config"]["num_hidden_layers"] == BLOCKS - 1
    assert "quantization_config" not in stored
    again = type(lm.model).from_pretrained(tmp_path / name)
    assert torch.equal(outputs(again), outputs(lm.model))
    assert {**again.config.vision_config.to_dict(), "dtype": None} == {**configuration, "dtype": None}


def test_models_that_need_an_image_are_one_sentence(tmp_path: Path) -> None:
    former = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "encoder_hidden_size": WIDTH, "vocab_size": VOCABULARY,
    }  # fmt: skip
    text = hf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=WIDTH, max_position_embeddings=40, **SMALL,
    )  # fmt: skip
    config = hf.Blip2Config(vision_config=VISION, qformer_config=former, text_config=text, image_token_index=9)
    hf.Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"saved from the class 'Blip2.*', which is not supported; .* \(of images too\)"
    ):
        check_model(str(tmp_path))


@quiet
def test_layers_of_several_classes_are_one_stack() -> None:
    config = hf.JambaConfig(
        **{**TEXT, "num_hidden_layers": 4}, num_experts=1, num_experts_per_tok=1, attn_layer_period=2,
        attn_layer_offset=1, mamba_d_state=4,
    )  # fmt: skip
    model = Architecture("jamba", lambda: hf.JambaForCausalLM(config)).model()
    lm = replace(LanguageModel.of(model), anatomy=infer_anatomy(model))
    ((stack, blocks),) = lm.stacks()
    assert stack.blocks == "model.layers" and len({type(block) for _, block in blocks}) == 2
    names = {site.name for site in lm.sites(("blocks",))}
    assert {"model.layers.0.mamba.in_proj", "model.layers.1.self_attn.q_proj"} <= names
    assert not any("dt_proj" in name for name in names)
