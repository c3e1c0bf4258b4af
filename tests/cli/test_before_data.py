"""A model that cannot be read is told by its header or its configuration, before anything else is read, in every verb.

What else there is to read cannot be read either: a verb that had begun with it would speak of that.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from laconic import compress
from laconic.errors import UserError
from tests.cli.printed import SVD, Output, complaint

VERBS = ("inspect", "compress", "evaluate", "evaluate against", "export", "run", "run evaluate", "study", "distil")
CONFIGURED = {
    "unknown library": ({"quant_method": "hqq"}, "is quantized by 'hqq', which laconic does not read"),
    "unknown layout": ({"quant_method": "gptq", "bits": 5}, "in a way that laconic does not read: its bits are 5"),
    "unknown version": ({"quant_method": "awq", "version": "marlin"}, "does not read: its version is 'marlin'"),
}


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source whose rows cannot be read, in the place of the rows of SST-2 too."""
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\nthe cat\n")
    (tmp_path / "a.jsonl").write_text('{"text": 7}\n')
    return tmp_path / "a.jsonl"


@pytest.fixture
def whole(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer cannot be read."""
    shutil.copytree(tiny_model, tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").rename(tmp_path / "whole" / "tokenizer.whole")
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    return tmp_path / "whole"


def quantized(model: Path, folder: Path, said: object) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return folder


def words(verb: str, model: Path, whole: Path, rows: Path, folder: Path) -> list[object]:
    """A verb that reads `model`, and `rows`, a source or the rows of SST-2, and `whole` where it takes two models."""
    if verb == "distil":
        # Its own tokenizer decides what a teacher can be.
        shutil.copy(whole / "tokenizer.whole", whole / "tokenizer.json")
    method = {"compress": {"method": "svd", "keep": 0.5}}
    if verb.startswith("run"):
        more = {"evaluate": {"tasks": ["glue/sst2"]}} if verb == "run evaluate" else {"data": str(rows)}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": str(model), "steps": [method], **more}))
        return ["run", folder / "recipe.yaml", "-o", folder / "out"]
    if verb == "study":
        models = [str(whole), str(shutil.copytree(whole, folder / "again")), str(model)]
        axes = {"model": models, "task": ["glue/sst2"], "method": ["drone"], "keep": [0.5], "seed": [0]}
        (folder / "study.yaml").write_text(yaml.safe_dump({"title": "x", "data": str(rows), "axes": axes}))
        return ["study", folder / "study.yaml", "-o", folder / "out"]
    compressing = [*SVD, "--data", rows, "-o", folder / "out"]
    return {
        "inspect": ["inspect", model, "--data", rows],
        "compress": ["compress", model, *compressing],
        "distil": ["compress", whole, "--method", f"distil:teacher={model}", *compressing],
        "evaluate": ["evaluate", model, "--tasks", "glue/sst2"],
        "evaluate against": ["evaluate", whole, "--tasks", f"fidelity:{rows}", "--against", model],
        "export": ["export", model, "--to", "onnx", "--tasks", "glue/sst2", "-o", folder / "out"],
    }[verb]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", CONFIGURED)
def test_a_quantization_that_is_not_read(
    capsys: Output, tiny_model: Path, whole: Path, unreadable: Path, tmp_path: Path, verb: str, fault: str
) -> None:
    said, sentence = CONFIGURED[fault]
    model = quantized(tiny_model, tmp_path / "quantized", said)
    assert sentence in complaint(capsys, *words(verb, model, whole, unreadable, tmp_path))


@pytest.mark.parametrize("verb", VERBS)
def test_codes_that_are_not_there(
    capsys: Output, tiny_model: Path, whole: Path, unreadable: Path, tmp_path: Path, verb: str
) -> None:
    model = quantized(tiny_model, tmp_path / "quantized", {"quant_method": "fp8"})
    file = tmp_path / "quantized" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "the file 'model.safetensors' is damaged or cut off" in complaint(
        capsys, *words(verb, model, whole, unreadable, tmp_path)
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"architecture": "nolama"}, "of the architecture 'nolama' cannot be read by transformers"),
        ({"leave_out": ("blk.1.ffn_up.weight",)}, "are incomplete: 1 of its tensors is missing"),
        ({"said": {"general.type": "adapter"}}, "has the type 'adapter' and is not a model"),
    ],
    ids=["architecture", "incomplete", "adapter"],
)
def test_a_gguf_file(
    capsys: Output, whole: Path, unreadable: Path, tmp_path: Path, verb: str, how: dict[str, object], sentence: str
) -> None:
    ggufs = pytest.importorskip("tests.model.checkpoints.ggufs")
    ggufs.write_llama(tmp_path / "model.gguf", **how)
    assert sentence in complaint(capsys, *words(verb, tmp_path / "model.gguf", whole, unreadable, tmp_path))


def test_in_python(tiny_model: Path, unreadable: Path, tmp_path: Path) -> None:
    model = quantized(tiny_model, tmp_path / "quantized", {"quant_method": "hqq"})
    with pytest.raises(UserError, match="is quantized by 'hqq', which laconic does not read"):
        compress(model, "svd", keep=0.5, data=str(unreadable))
