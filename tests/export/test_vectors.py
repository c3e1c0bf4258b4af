"""The exported model of a sentence-transformers folder makes the vectors that the folder declares."""

from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.export import export
from laconic.export.agreement import check_agreement
from laconic.model import LanguageModel, load, predict
from laconic.progress import silent
from laconic.runtime import ONNX, OPENVINO
from laconic.runtime.engines import load_program
from laconic.runtime.graph import build_graph
from laconic.runtime.signature import Signature
from tests.architectures import BY_NAME, WIDTH, compress_everything
from tests.model.embedding.sentence_transformers_reference import TEXTS, encoded
from tests.sentences import NORMALIZE, Part, dense, pooling, sentence_folder

for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)

FILES = {ONNX: "model.onnx", OPENVINO: "openvino_model.xml"}


def batch_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    [batch] = batches(lm, Corpus("memory", "dev", tuple(map(Example, TEXTS))))
    return batch


def exported(lm: LanguageModel, runtime: str, folder: Path) -> torch.Tensor:
    """The vectors of TEXTS by what is written to `folder`."""
    written = export(lm, runtime, folder).model
    assert written.outputs == ("last_hidden_state", "sentence_embedding")
    signature = Signature.of(lm)
    assert written.inputs == signature.inputs
    return load_program(runtime, folder / FILES[runtime])(signature.feeds(lm, batch_of(lm)))["sentence_embedding"]


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO])
@pytest.mark.slow
def test_the_library_makes_the_same_vectors(runtime: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("cls", "max"), dense(2 * WIDTH, 8), NORMALIZE])
    made = exported(load(str(folder)), runtime, tmp_path / "out")
    assert made.shape == (len(TEXTS), 8)
    torch.testing.assert_close(made, encoded(folder), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen3", [pooling("lasttoken"), NORMALIZE]),
        ("bert-base", [pooling("weightedmean"), dense(WIDTH, 8, "torch.nn.modules.activation.GELU")]),
    ],
)
@pytest.mark.slow
def test_every_pooling_of_a_compressed_model(name: str, parts: list[Part], tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", parts, model=BY_NAME[name].model(), top={"truncate_dim": 7})
    lm = compress_everything(load(str(folder)), rank=8)
    made = exported(lm, ONNX, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(made, predict(lm, batch_of(lm))[0].values, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_a_prompt_that_is_not_pooled_is_an_input(tmp_path: Path) -> None:
    top = {"prompts": {"query": "so: "}, "default_prompt_name": "query"}
    folder = sentence_folder(tmp_path / "model", [pooling("mean", include_prompt=False)], top=top)
    lm = load(str(folder))
    assert "pooling_mask" in Signature.of(lm).inputs
    torch.testing.assert_close(exported(lm, ONNX, tmp_path / "out"), encoded(folder), rtol=1e-4, atol=2e-6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`sentence_embedding` is the vector of a text: mean pooling without the prompt." in card
    assert "Prompts: query; 'so: ' stands before every text. Put it before the text yourself." in card
    assert "`pooling_mask` is `attention_mask`, with 0 at the tokens of a prompt." in card


@pytest.mark.slow
def test_other_vectors_are_no_agreement(tmp_path: Path) -> None:
    lm = load(str(sentence_folder(tmp_path / "cls", [pooling("cls"), NORMALIZE])))
    other = load(str(sentence_folder(tmp_path / "mean", [pooling("mean"), NORMALIZE])))
    graph = build_graph(other, ONNX)
    graph.save(tmp_path / "model.onnx")
    wrong: Any = load_program(ONNX, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="its output 'sentence_embedding' is off by up to"):
        check_agreement(lm, wrong, graph.signature, ONNX, silent)
