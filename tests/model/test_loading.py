"""A model is loaded whole and sound, or one sentence says what is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.errors import UserError, reason_of
from laconic.model import ModelTask, check_model, load
from laconic.model.loading import load_tokenizers
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.tokens import letters

LAYER = "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["gpt2"].model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, file, {"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_stored_dtype_is_remembered_and_float32_computed_with(tmp_path: Path) -> None:
    model = BY_NAME["bert-classifier"].model().half()
    model.save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    assert (lm.dtype, lm.model.dtype, lm.task) == (torch.float16, torch.float32, ModelTask.CLASSIFICATION)
    assert torch.equal(outputs(lm.model), outputs(model.float()))
    # transformers would make up an empty tokenizer.
    assert lm.tokenizer is None


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_dtype_that_the_configuration_does_not_say_is_that_of_the_file(
    tmp_path: Path, dtype: torch.dtype, shard: str
) -> None:
    BY_NAME["gpt2"].model().to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard == "1GB" else pytest.approx(10, abs=8))
    change_config(tmp_path, dtype=None)
    assert load(str(tmp_path)).dtype is dtype


@pytest.mark.parametrize("asked", [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}])
def test_what_a_forward_pass_gives_beside_is_not_the_configuration_s_to_say(
    tmp_path: Path, asked: dict[str, bool]
) -> None:
    model = BY_NAME["llama"].model()
    model.save_pretrained(tmp_path / "model")
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**said, **asked}))
    lm = load(str(tmp_path / "model"))
    assert torch.equal(outputs(lm.model), outputs(model.eval()))
    save(lm, tmp_path / "saved")
    assert torch.equal(outputs(load(str(tmp_path / "saved")).model), outputs(lm.model))


def test_tokenizers_are_those_in_the_folder_and_never_made_up(folder: Path) -> None:
    assert load_tokenizers(str(folder)) == load_tokenizers("") == (None, None)
    letters("start").save_pretrained(folder)
    letters("none").save_pretrained(folder / "target_tokenizer")
    own, target = load_tokenizers(str(folder))
    assert own is not None and target is not None
    assert own("a")["input_ids"] == [0, *target("a")["input_ids"]]
    assert load_tokenizers(str(folder), target)[0] is target


def test_home_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model").source == "~/model"


def test_plain_encoder_without_pooler(tmp_path: Path) -> None:
    BY_NAME["bert-base"].model().save_pretrained(tmp_path)
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        change_tensor(tmp_path, name, None)
    assert load(str(tmp_path)).task is ModelTask.EMBEDDING


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (None, f"are incomplete: 1 of its tensors is missing, the first is '{LAYER}'"),
        (
            torch.zeros(3, 3),
            r"do not fit its config.json: .* has shape \(3, 3\) in the file and \(32, 48\) in the model",
        ),
        (torch.full((32, 48), float("nan")), f"NaN or infinite values in '{LAYER}'"),
        (torch.full((32, 48), float("inf")), f"NaN or infinite values in '{LAYER}'"),
    ],
)
def test_bad_tensor(folder: Path, tensor: torch.Tensor | None, sentence: str) -> None:
    change_tensor(folder, LAYER, tensor)
    with pytest.raises(UserError, match=sentence):
        load(str(folder))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n_layer": 3}, "are incomplete: 12 of its tensors are missing"),
        ({"n_layer": "two"}, "describes no model: Field 'n_layer' expected int, got str"),
        (
            {"quantization_config": {"quant_method": "quanto", "bits": 4}},
            "is quantized by 'quanto', which laconic",
        ),
        ({"quantization_config": {"quant_method": "hqq"}}, "is quantized by 'hqq'"),
        ({"quantization_config": {"bits": 4}}, "is quantized by 'an unnamed library'"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "'GPT2DoubleHeadsModel', which is not supported"),
    ],
)
def test_bad_configuration(folder: Path, values: dict[str, object], sentence: str) -> None:
    change_config(folder, **values)
    with pytest.raises(UserError, match=sentence):
        load(str(folder))


# No blocks with linears in the one, no words in the other.
@pytest.mark.parametrize("model_type", ["resnet", "vit"])
def test_unknown_architecture(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(
        UserError, match=rf"'{model_type}' has no entry in laconic\.model\.anatomy, .* known are albert, bart, bert"
    ):
        load(str(tmp_path))


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"The weights of .* cannot be loaded"):
        load(str(folder))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model folder"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="There is no loadable model 'no-such-model'"):
        load("no-such-model")


def test_no_weights(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("empty"), ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"cannot be loaded: .*no file named"):
        load(str(folder.with_name("empty")))


def test_a_foreign_quantization_is_refused_before_weights_are_read(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "hqq", "bits": 4})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="hqq"):
        check_model(str(folder))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "RuntimeError"),
        ("It broke.\nCall for help.", "It broke"),
        ("Error for field 'x':\n\n    expected int:\n got str\n more", "Error for field 'x': expected int: got str"),
        ("It ends here:", "It ends here"),
    ],
)
def test_what_a_library_says_becomes_one_sentence(message: str, reason: str) -> None:
    assert reason_of(RuntimeError(message)) == reason
