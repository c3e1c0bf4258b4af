"""`laconic export`: folders that are whole and right, or not there."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.export import export
from laconic.model import LanguageModel
from laconic.runtime import ONNX, OPENVINO
from laconic.runtime.graph import Graph
from laconic.store import save
from tests.evaluate.models import with_tokenizer
from tests.problems import classifier
from tests.runtime.mixed import EXACT, int8, mixed
from tests.unread import spoil

for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)

Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO])
def test_the_folder_has_everything_that_a_server_needs(
    capsys: Output, tmp_path: Path, tiny_model: Path, runtime: str
) -> None:
    asked = ["export", str(tiny_model), "--to", runtime, "-o", str(tmp_path / "out"), "--json"]
    assert status(asked) == 0
    found = json.loads(capsys.readouterr().out)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    graph = {"model.onnx"} if runtime == ONNX else {"openvino_model.xml", "openvino_model.bin"}
    assert names == {*graph, "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert found["bytes"] == sum((tmp_path / "out" / name).stat().st_size for name in graph)
    assert found["agreement"]["error"] < 1e-5 and found["outputs"] == ["logits"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`attention_mask`" in card and str(tiny_model) not in card


@pytest.mark.parametrize("maker", [None, int8])
@pytest.mark.slow
def test_a_compressed_model_says_what_became_of_its_codes(tmp_path: Path, maker: Any) -> None:
    lm = mixed(with_tokenizer("bert-classifier"), EXACT if maker is None else {"int8": maker})
    outcome = export(lm, ONNX, tmp_path / "out")
    found = outcome.model
    assert found.agreement.error <= found.agreement.tolerance
    assert sum(layers.count for layers in found.layers.values()) >= 8
    assert all(kind in (tmp_path / "out" / "README.md").read_text() for kind in found.layers)


def tampered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of whatever is written is another."""
    import onnx_ir

    def save(self: Graph, file: Path) -> None:
        initializers = self.program.model.graph.initializers.values()
        matrix = next(value for value in initializers if value.const_value.size == 32 * 32)
        changed = matrix.const_value.numpy().copy()
        changed[3, 4] += 3
        matrix.const_value = onnx_ir.tensor(changed, name=matrix.name)
        self.program.save(file)

    monkeypatch.setattr(Graph, "save", save)


@pytest.mark.parametrize("runtime", [ONNX, OPENVINO])
@pytest.mark.slow
def test_an_export_that_computes_something_else_is_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    tampered(monkeypatch)
    with pytest.raises(UserError, match=r"does not compute what the model in torch does.*nothing was written"):
        export(with_tokenizer("bert-classifier"), runtime, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "onx"], "`laconic export` has no target 'onx': did you mean 'onnx'?"),
        (["--to", "vllm"], "`laconic export` has no target 'vllm': known are compressed-tensors, gguf, gptq, onnx"),
        (["--to", "compile"], "'compile' is torch's, and runs the model as it is saved"),
        (["--to", "onnx", "--tasks", "glue/sst3"], "did you mean"),
        (["--to", "onnx", "--tasks", "perplexity:builtin:pydoc"], "needs a causal model"),
    ],
)
def test_mistakes_are_found_before_weights_are_read(
    capsys: Output, tmp_path: Path, words: list[str], sentence: str
) -> None:
    save(with_tokenizer("bert-classifier"), tmp_path / "model")
    spoil(tmp_path / "model")
    capsys.readouterr()
    assert status(["export", str(tmp_path / "model"), "-o", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("runtime", "library"), [(ONNX, "onnxruntime"), (OPENVINO, "openvino")])
def test_a_missing_library_is_one_sentence(
    capsys: Output, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert status(["export", str(tiny_model), "--to", runtime, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"needs {library}, not installed here: pip install 'laconic-lm[{runtime}]'" in said
    assert status(["evaluate", str(tiny_model), "--runtime", runtime]) == 2
    assert library in capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(capsys: Output, tmp_path: Path, tiny_model: Path) -> None:
    assert status(["export", str(tiny_model), "--to", "onnx", "-o", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_is_judged_through_what_was_written(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm: LanguageModel = with_tokenizer("llama")
    outcome = export(lm, ONNX, tmp_path / "out", tasks=(f"perplexity:{texts}",), limit=5)
    assert outcome.quality is not None and outcome.quality.original is not None
    task = f"perplexity:{texts}"
    both = (outcome.quality.results, outcome.quality.original)
    exported, before = (found[task]["perplexity"].value for found in both)
    assert exported == pytest.approx(before, rel=1e-4)
    monkeypatch.setattr(import_module("laconic.export.folder"), "SIGNIFICANT", 2.0)
    monkeypatch.setattr(import_module("laconic.export.folder"), "LARGEST_LOSS", -1.0)
    with pytest.raises(UserError, match=r"has a perplexity of .* nothing was written"):
        export(lm, ONNX, tmp_path / "worse", tasks=(task,), limit=5)
    assert not (tmp_path / "worse").exists()


@pytest.mark.slow
def test_the_order_of_labels_is_taken_where_a_task_needs_it(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nfine\t1\nbad\t0\ndull\t0\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    save(classifier(2, ("good", "bad")), tmp_path / "model")
    asked = ["export", str(tmp_path / "model"), "--to", "onnx", "-o", str(tmp_path / "out"), "--tasks", "glue/sst2"]
    capsys.readouterr()
    assert status(asked) == 2
    assert "has the classes good, bad, and 'glue/sst2' has negative, positive" in capsys.readouterr().err
    assert status([*asked, "--label-order", "positive,negative", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["quality"]["settings"]
    assert settings["glue/sst2"]["classes"] == ["positive", "negative"]
