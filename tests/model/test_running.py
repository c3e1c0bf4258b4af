"""A class builds models that it cannot run; the first run of one says so in a sentence that names its folder."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from laconic.calibrate.passes import check_runs, random_batch
from laconic.errors import UserError
from laconic.evaluate.seq2seq import generate
from laconic.evaluate.timing import measure_generation
from laconic.formats import LowRank
from laconic.model import LanguageModel, load, predict
from laconic.model.predictions import ModelRunError
from laconic.model.prunable_group import prunable_groups
from laconic.model.tokens import check_decoder_start
from laconic.runtime.serve import CompiledForward
from tests import vision
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer
from tests.tiny_models import DECODER, SMALL

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
Values = dict[str, Any]
Maker = Callable[[], hf.PreTrainedModel]


def of(name: str) -> Maker:
    return lambda: BY_NAME[name].lm().model


def llama(keys: int) -> hf.PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, **SMALL, "num_key_value_heads": keys}))


def mixtral() -> hf.PreTrainedModel:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, **SMALL, num_local_experts=2))


def edited(make: Maker, folder: Path, values: Values) -> LanguageModel:
    """The model as it is loaded where its configuration says these `values`."""
    make().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return load(str(folder))


BROKEN: dict[str, tuple[Maker, Values, str]] = {
    "heads that share no whole number of keys": (
        lambda: llama(3),
        {},
        r"size of tensor a \(4\) must match the size of tensor b \(3\)",
    ),
    "more experts for a token than there are": (
        mixtral,
        {"num_experts_per_tok": 9},
        "selected index k out of range",
    ),
    "a kind of layer that the class does not know": (
        of("gemma2"),
        {"layer_types": ["full_attention", "chunked_attention"]},
        "KeyError: 'chunked_attention'",
    ),
    "rotary positions wider than a head": (
        of("gpt-neox"),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.5}},
        r"size of tensor a \(8\) must match the size of tensor b \(12\)",
    ),
    "distances of a logarithm of nothing": (of("t5"), {"relative_attention_max_distance": 0}, "math domain error"),
    "pieces that do not come out even": (
        of("bert-classifier"),
        {"chunk_size_feed_forward": 3},
        "multiple of",
    ),
}


def labelled(lm: LanguageModel) -> dict[str, torch.Tensor]:
    batch = random_batch(lm, 2, 8)
    batch.pop("decoder_input_ids", None)
    return batch | {"labels": batch["input_ids"]}


@pytest.mark.parametrize("name", BROKEN)
def test_the_sentence_has_the_folder_and_the_reason(name: str, tmp_path: Path) -> None:
    make, values, reason = BROKEN[name]
    lm = edited(make, tmp_path, values)
    with pytest.raises(ModelRunError, match=rf"The model '{tmp_path}' cannot run 2 rows of 8 tokens: .*{reason}.*;"):
        predict(lm, labelled(lm))
    with pytest.raises(ModelRunError, match=r"cannot run 1 row of 8 tokens: .*; look at its config\.json") as caught:
        check_runs(lm)
    assert caught.value.reason and caught.value.reason in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), caught.value.reason)


def test_a_tower_of_text_beside_images_is_a_model_like_any_other() -> None:
    text = hf.LlamaConfig(**{**vision.TEXT, "num_key_value_heads": 3})
    towers = {"vision_config": hf.CLIPVisionConfig(**vision.VISION, projection_dim=32), "text_config": text}
    lm = LanguageModel.of(hf.LlavaForConditionalGeneration(hf.LlavaConfig(**towers, image_token_index=vision.IMAGE)))
    with pytest.raises(ModelRunError, match=r"The model cannot run 1 row of 8 tokens"):
        check_runs(lm)


def test_writing_says_it_too(tmp_path: Path) -> None:
    """A window of nothing: the class reads a text with it, and cannot write one."""
    lm = edited(of("mistral"), tmp_path, {"sliding_window": 0})
    predict(lm, random_batch(lm, 1, 8))
    with pytest.raises(ModelRunError, match=rf"The model '{tmp_path}' cannot run 1 row of 8 tokens"):
        measure_generation(lm, 1, 8)


@pytest.mark.parametrize("model", ["bert-classifier", "llama"])
def test_outputs_have_names_whatever_the_model_was_saved_with(model: str, tmp_path: Path) -> None:
    lm = edited(of(model), tmp_path, {"return_dict": False})
    assert torch.equal(predict(lm, labelled(lm))[0].values, predict(load(str(tmp_path)), labelled(lm))[0].values)
    check_runs(lm)


def test_a_model_in_memory_that_gives_tuples_is_told() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    lm.model.config.return_dict = False
    for run in (lambda: predict(lm, labelled(lm)), lambda: check_runs(lm)):
        with pytest.raises(UserError, match=r"The model gives its outputs without names; set return_dict of its conf"):
            run()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"repetition_penalty": 0.0}, "`penalty` has to be a strictly positive float"),
        ({"decoder_start_token_id": 999}, "index out of range"),
        ({"eos_token_id": "end"}, "invalid data type 'str'"),
    ],
)
def test_what_says_how_to_write_is_in_a_file_of_its_own(said: Values, reason: str, tmp_path: Path) -> None:
    BY_NAME["t5"].lm().model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0} | said))
    lm = with_tokenizer(load(str(tmp_path)))
    with pytest.raises(ModelRunError, match=rf"cannot write after 2 rows of 8 tokens: .*{reason}.*generation_"):
        generate(lm, labelled(lm))


def test_what_does_not_run_either_way_is_no_fault_of_the_compiler() -> None:
    lm = LanguageModel.of(llama(3))
    lm.model.forward = CompiledForward(lm)
    with pytest.raises(ModelRunError, match=r"cannot run 2 rows of 8 tokens"), torch.inference_mode():
        predict(lm, random_batch(lm, 2, 8))


def test_a_mistake_of_laconic_is_told_as_it_is() -> None:
    lm = BY_NAME["llama"].lm()
    lm.model.set_submodule("model.layers.0.mlp.down_proj", LowRank(32, 7, 2, bias=False))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_runs(lm)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("all of it"), UserError("a sentence"), KeyboardInterrupt()])
def test_what_is_no_mistake_of_the_model_stays_what_it_is(error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    lm = BY_NAME["llama"].lm()
    lm.model.register_forward_pre_hook(fail)
    with pytest.raises(type(error)) as caught:
        check_runs(lm)
    assert caught.value is error


@pytest.mark.parametrize("model", ["t5", "bart"])
def test_a_decoder_that_begins_with_what_it_does_not_know_is_told(model: str) -> None:
    lm = BY_NAME[model].lm()
    check_decoder_start(lm)
    lm.model.config.decoder_start_token_id = 99
    with pytest.raises(UserError, match=r"begins with the token 99, .* for 50 tokens, 0 to 49; set decoder_"):
        check_decoder_start(lm)
    # How long it takes to write does not hang on the token.
    assert measure_generation(lm, 1, 4, new=2) is not None


def test_heads_that_share_no_whole_number_of_keys_are_told_before_any_goes() -> None:
    lm = LanguageModel.of(llama(3))
    with pytest.raises(UserError, match=r"The 4 heads of '.*self_attn' cannot share 3 heads of keys evenly"):
        prunable_groups(lm)
