"""The files beside an exported model that writes text: configurations, and those that GenAI reads."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from laconic.errors import UserError
from laconic.export import check_target, text_files
from laconic.export.cached_card import cached_lines
from laconic.export.genai_config import genai_config
from laconic.export.graph_target import GraphTarget
from laconic.export.text_files import write_text_files
from laconic.model import Group
from laconic.model.prunable_group import prunable_groups
from laconic.model.width import keep_parts
from laconic.runtime import ONNX, OPENVINO
from laconic.runtime.signature import Signature
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer

for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)


def test_the_configuration_for_onnx_genai(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm()
    assert write_text_files(lm, tmp_path, ONNX, Signature.of(lm, cached=True)) == ()
    found = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    decoder = found["decoder"]
    assert (found["type"], found["vocab_size"], found["context_length"], found["eos_token_id"]) == ("llama", 50, 40, 2)
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (8, 2, 2)
    assert decoder["inputs"]["past_key_names"] % 1 == "past_key_values.1.key"
    assert decoder["outputs"]["present_value_names"] % 0 == "present.0.value"
    assert {"config.json", "generation_config.json"} <= {file.name for file in tmp_path.iterdir()}


def test_an_architecture_without_a_name_in_genai_is_any_decoder() -> None:
    lm = BY_NAME["gpt2"].lm()
    found = genai_config(lm, Signature.of(lm, cached=True))
    assert found is not None and found["model"]["type"] == "decoder"


def test_layers_of_different_sizes_are_not_for_genai(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm()
    keep_parts(lm, prunable_groups(lm, (Group.ATTENTION,))[0], [1])
    [sentence] = write_text_files(lm, tmp_path, ONNX, Signature.of(lm, cached=True))
    assert sentence.startswith("There is no genai_config.json") and not (tmp_path / "genai_config.json").exists()


def test_without_the_converter_of_tokenizers_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "find_spec", lambda name: None)
    lm = with_tokenizer("llama")
    [sentence] = write_text_files(lm, tmp_path, OPENVINO, Signature.of(lm, cached=True))
    assert "pip install 'laconic-lm[openvino-genai]'" in sentence
    assert write_text_files(BY_NAME["llama"].lm(), tmp_path, OPENVINO, None) == ()


def test_the_card_says_what_reads_the_folder() -> None:
    cards = {
        (name, runtime): "\n".join(cached_lines(BY_NAME[name].lm(), runtime))
        for name in ("llama", "bart")
        for runtime in (ONNX, OPENVINO)
    }
    assert 'OVModelForCausalLM.from_pretrained("path/to/this/folder", ov_config={"INF' in cards["llama", OPENVINO]
    assert "import OVModelForSeq2SeqLM" in cards["bart", OPENVINO]
    assert "onnxruntime_genai.Model" in cards["llama", ONNX]
    assert "`decoder_with_past_model.onnx`" in cards["bart", ONNX]


def test_only_graphs_go_without_a_cache() -> None:
    target = check_target(ONNX, cache=False)
    assert isinstance(target, GraphTarget) and not target.cache
    with pytest.raises(UserError, match="engines that read 'gguf' always keep a cache; leave out --no-cache"):
        check_target("gguf", cache=False)


def test_a_tokenizer_that_cannot_be_converted_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openvino.exceptions import OVTypeError

    def refuse(*arguments: object, **options: object) -> None:
        raise OVTypeError("Pre-tokenizer type 'Odd' is not supported")

    monkeypatch.setattr(text_files, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, text_files.TOKENIZERS, SimpleNamespace(convert_tokenizer=refuse))
    lm = with_tokenizer("llama")
    [sentence] = write_text_files(lm, tmp_path, OPENVINO, Signature.of(lm, cached=True))
    assert "Pre-tokenizer type 'Odd' is not supported" in sentence
    assert not list(tmp_path.glob("openvino_*"))
