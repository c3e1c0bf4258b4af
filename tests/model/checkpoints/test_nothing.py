"""A folder or file that is no model gives one sentence as its error."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.model import check_model
from laconic.model.checkpoints.configuration import check_values
from laconic.runtime.graph import FILE_NAMES
from tests.architectures import BY_NAME


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    BY_NAME["gpt2"].model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def refused(source: Path | str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says one sentence and ends with 2, and so does Python."""
    with pytest.raises(UserError, match=sentence):
        check_model(str(source))
    for verb in ("inspect", "evaluate"):
        assert status([verb, str(source)]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and "Traceback" not in said


def test_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for name in ("loop", "broken", "one"):
        refused(tmp_path / name, "is a link that leads nowhere; give the folder itself", capsys)
    refused(tmp_path / "loop" / "model", "There is no model folder", capsys)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "named by an empty text"),
        (" ", "named by an empty text"),
        ("~no-such-user-at-all/model", "cannot be read: Could not determine home directory"),
        ("a" * 300, "cannot be read: File name too long"),
        ("no such name", "no model of the hub can have that name"),
        (
            "https://huggingface.co/owner/name",
            "is a web address; give the model's name on the hub, as 'owner/name",
        ),
        ("hf://owner/name", "is a web address"),
        ("/dev/null", "is neither a folder nor a file"),
        ("a\0b", "no model of the hub can have that name"),
    ],
)
def test_names(source: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(source, sentence, capsys)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.safetensors", "contains only weights; give the folder that it lies in"),
        ("pytorch_model.bin", "contains only weights"),
        ("model.zip", "is an archive; unpack it"),
        ("notes.txt", "is a file, and a model is a folder"),
    ],
)
def test_files(tmp_path: Path, name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" if name.endswith(".zip") else b"some notes")
    refused(tmp_path / name, sentence, capsys)


@pytest.mark.parametrize("name", FILE_NAMES.values())
def test_a_folder_for_another_runtime(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"graph")
    refused(tmp_path, rf"holds an exported model \({name}\) for another runtime.*; give the folder that it was", capsys)


def test_a_graph_beside_a_configuration(folder: Path) -> None:
    """As `laconic export` writes a model with a cache."""
    (folder / "model.safetensors").unlink()
    (folder / "decoder_model.onnx").write_bytes(b"graph")
    with pytest.raises(UserError, match=r"holds an exported model \(decoder_model.onnx\) for another runtime"):
        check_model(str(folder))


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", "is neither a folder nor a file; give a folder with a config.json", capsys)


def test_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, r"has no config\.json; give a folder saved by save_pretrained", capsys)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refused(tmp_path, "holds a diffusers pipeline and no language model", capsys)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30.0"}')
    refused(tmp_path, "holds a part of a diffusers pipeline", capsys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "cannot be read: it is not JSON"),
        (
            b'{"model_type": "gpt2",}',
            r"config\.json' of the model .* cannot be read: it is not JSON .* in line 1, column",
        ),
        (b"\xff\xfe\x00", "cannot be read: it is not text"),
        (b"[]", r"must be a JSON object; got \[\]"),
        (b"3", "must be a JSON object; got 3"),
        (b"{}", "does not say model_type, the name of an architecture; take the one saved with the weights"),
        (b"[" * 10**5, "cannot be read: it nests too deeply"),
        (b'{"model_type": "gpt2", "is_encoder_decoder": "no"}', "is_encoder_decoder must be true or false; got 'no'"),
        (b'{"model_type": "gpt2", "quantization_config": {}}', r"an object that names a quant_method, .*; got \{\}"),
        (
            b'{"model_type": "gpt2", "transformers_weights": 5}',
            "transformers_weights must be the name of a file .*got 5",
        ),
        (
            b'{"model_type": "gpt2", "transformers_weights": "../a.safetensors"}',
            r"in the same folder; got '\.\./a\.safe",
        ),
        (b'{"model_type": ["gpt2"]}', "model_type must be the name of an architecture; got"),
        (b'{"model_type": "gpt2", "architectures": "GPT2LMHeadModel"}', "architectures must be a list of names"),
        (b'{"model_type": "gpt2", "architectures": [3]}', "architectures must be a list of names"),
        (b'{"model_type": "gpt2", "quantization_config": "x"}', "quantization_config must be an object"),
        (
            b'{"model_type": "gpt2", "dtype": "floatx"}',
            "dtype must be one of float16, .*; got 'floatx'",
        ),
        (b'{"model_type": "gpt2", "id2label": ["x"]}', "config.json of .* describes no model: AttributeError: "),
        (b'{"model_type": "gpt2", "num_labels": "2"}', "config.json of .* describes no model: TypeError: "),
        (b'{"model_type": "gpt2", "quantization_config": []}', r"quantization_config must be an object; got \[\]"),
        (
            b'{"model_type": "gpt2", "rope_parameters": {"factors": [1.0, NaN]}}',
            r"rope_parameters\.factors\.1 must be a number; got nan",
        ),
        (
            b'{"model_type": "gpt2", "architectures": ["BertForMaskedLM"]}',
            "contradicts itself: architectures names 'BertForMaskedLM', a class of 'bert', and model_type is 'gpt2'",
        ),
        (b'{"model_type": "gpt2", "id2label": {"x": "a"}}', "Each key of .*id2label must be the number .*got 'x'"),
        (b'{"model_type": "gpt2", "label2id": {"a": "x"}}', "label2id, a, must be the number of a class; got 'x'"),
        (b'{"model_type": "gpt2", "pad_token_id": "x"}', "pad_token_id must be a whole number, .*; got 'x'"),
        (b'{"model_type": "gpt2", "eos_token_id": [1, 2.5]}', "eos_token_id must be a whole number, .*; got"),
        (b'{"model_type": "llama", "rope_parameters": "x"}', "rope_parameters must be an object; got 'x'"),
        (
            b'{"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": "x"}}',
            "rope_parameters.rope_theta must be a number, or a list of numbers; got 'x'",
        ),
        (
            b'{"model_type": "gemma3", "text_config": {"rope_scaling": {"full_attention": {"rope_type": 3}}}}',
            "text_config.rope_scaling.full_attention.rope_type must be the name of a kind .*; got 3",
        ),
        (b'{"model_type": "no-such-type"}', "names the architecture 'no-such-type', which transformers [0-9]"),
    ],
)
def test_config_json(folder: Path, text: bytes, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_bytes(text)
    refused(folder, sentence, capsys)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"n_head": 5}, "divisible by num_heads"),
        ({"n_head": 0}, "modulo by zero"),
        ({"activation_function": "of tomorrow"}, "activation_function is 'of tomorrow', which its class does not know"),
        ({"vocab_size": -1}, "negative dimension"),
    ],
)
def test_no_model_can_be_built(
    folder: Path, values: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **values}))
    refused(folder, f"describes no model that can be built: .*{reason}", capsys)


@pytest.mark.parametrize("dtype", [3, "int8", "float8_e4m3fn", ["float16"]])
def test_dtypes(folder: Path, dtype: object, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "dtype": dtype}))
    refused(folder, "dtype must be one of float16, bfloat16, float32, float64; got", capsys)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\xff" * 40])
def test_damaged_headers(folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, r"the file 'model\.safetensors' is damaged or cut off \(.+\); fetch it again", capsys)


def test_cut_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(folder, r"the file 'model\.safetensors' is damaged or cut off", capsys)


@pytest.mark.parametrize(
    ("listing", "sentence"),
    [
        ({"metadata": {}, "weight_map": {"a": "model-2.safetensors"}}, r"names the file 'model-2\.safetensors', which"),
        ({"metadata": {}, "weight_map": {"a": "../a.safetensors"}}, r"must be one in the same folder; got '\.\./a"),
        ({"metadata": {}, "weight_map": {"a": "/a.safetensors"}}, "must be one in the same folder"),
        ({"metadata": {}, "weight_map": {"a": 3}}, "weight_map must be an object that maps tensors to files"),
        ({"metadata": {}, "weight_map": {}}, "weight_map must be an object that maps tensors to files"),
        ({"metadata": {}}, "weight_map must be an object that maps tensors to files; got None"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "metadata must be an object"),
        ([], r"must be a JSON object; got \[\]"),
    ],
)
def test_shards(folder: Path, listing: object, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))
    refused(folder, sentence, capsys)


def test_a_damaged_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-1.safetensors", {"format": "pt"})
    (folder / "model-2.safetensors").write_bytes(b"")
    names = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(tensors)}
    said = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(said))
    refused(folder, r"the file 'model-2\.safetensors' is damaged", capsys)


def test_a_generation_config_that_is_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "generation_config.json"
    file.write_text(file.read_text()[:-4])
    refused(folder, r"The file 'generation_config\.json' of the model .* cannot be read: it is not JSON", capsys)


def test_numbers_of_classes_that_are_text_are_taken() -> None:
    """As old files of the hub have them."""
    check_values({"label2id": {"bad": "0", "good": 1}, "id2label": {"0": "bad", "1": "good"}}, "config.json: ")
