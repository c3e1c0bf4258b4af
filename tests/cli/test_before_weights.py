"""Mistakes in rows and tokenizers are reported before weights are loaded, in every verb that takes data.

The model's weights are NaN: a verb that had loaded them would speak of those.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from laconic import compress
from laconic.errors import UserError
from tests.cli.printed import SVD, Output, complaint


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """A classifier of two classes that cannot be loaded."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (folder / "config.json").write_text(json.dumps(config | classes))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: it[:2] for name, it in tensors.items() if name.startswith("classifier.")}
    nans = {name: torch.full_like(it, torch.nan) for name, it in tensors.items()}
    save_file(nans, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    return folder


def asked(verb: str, model: Path, rows: Path, folder: Path) -> list[object]:
    """The words of a verb that reads `rows`, a source or the dev split of SST-2."""
    recipe = {"model": str(model), "data": str(rows), "steps": [{"compress": {"method": "svd", "keep": 0.5}}]}
    if verb == "run":
        recipe = {**recipe, "data": "builtin:pydoc", "evaluate": {"tasks": ["glue/sst2"]}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return ["run", folder / "recipe.yaml", "-o", folder / "out"]
    if verb == "study":
        axes = {"model": [str(model)], "task": ["glue/sst2"], "method": ["svd"], "keep": [0.5], "seed": [0]}
        (folder / "study.yaml").write_text(yaml.safe_dump({"title": "x", "axes": axes}))
        return ["study", folder / "study.yaml", "-o", folder / "out"]
    words: dict[str, list[object]] = {
        "compress": ["compress", model, *SVD, "--data", rows, "-o", folder / "out"],
        "evaluate glue": ["evaluate", model, "--tasks", "glue/sst2"],
        "evaluate fidelity": ["evaluate", model, "--tasks", f"fidelity:{rows}", "--against", model],
        "inspect": ["inspect", model, "--data", rows],
        "export": ["export", model, "--to", "onnx", "--tasks", "glue/sst2", "-o", folder / "out"],
    }
    return words[verb]


OF_A_TASK = ("run", "study", "evaluate glue", "export")
OF_A_SOURCE = ("compress", "evaluate fidelity", "inspect")


@pytest.mark.parametrize("verb", OF_A_TASK)
@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("sentence\tlabel\nthe cat\t0\nthe dog\t2\n", "SST-2/dev.tsv:3 has the label 2, which is none of the classes"),
        ("sentence\tlabel\nthe cat\t0\nthe dog\t\n", "SST-2/dev.tsv:3 has no label, and of 2 rows 1 have one"),
        ("text\tlabel\nthe cat\t0\n", "SST-2/dev.tsv"),
        ("sentence\tlabel\nthe cat\t0\nthe dog\n", "SST-2/dev.tsv:3 has 1 columns"),
    ],
)
def test_rows_of_a_task(
    capsys: Output, broken: Path, data: Path, tmp_path: Path, verb: str, lines: str, sentence: str
) -> None:
    (data / "dev.tsv").write_text(lines)
    assert sentence in complaint(capsys, *asked(verb, broken, tmp_path, tmp_path))


@pytest.mark.parametrize("verb", OF_A_SOURCE)
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "the cat"}\n{"text": 7}\n', "a.jsonl:2: the field 'text' must be text; got 7"),
        ("a.tsv", "words\nthe cat\n", "a.tsv:2 has no field that laconic reads as text"),
        ("a.txt", "\n\n", "has no rows of text"),
    ],
)
def test_rows_of_a_source(
    capsys: Output, broken: Path, tmp_path: Path, verb: str, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    assert sentence in complaint(capsys, *asked(verb, broken, tmp_path / name, tmp_path))


@pytest.mark.parametrize("verb", (*OF_A_TASK, *OF_A_SOURCE))
@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ("far", "gives the token 5000 (for 'cat'), and the model has embeddings for"),
        ("none", "has no tokenizer in its folder; save its tokenizer there too."),
    ],
)
def test_what_reads_them(
    capsys: Output, broken: Path, data: Path, tmp_path: Path, verb: str, tokens: str, sentence: str
) -> None:
    (data / "dev.tsv").write_text("sentence\tlabel\nthe cat\t0\nthe dog\t1\n")
    (tmp_path / "a.txt").write_text("the cat\n")
    spoil(broken, tokens)
    assert sentence in complaint(capsys, *asked(verb, broken, tmp_path / "a.txt", tmp_path))


def spoil(model: Path, tokens: str) -> None:
    file = model / "tokenizer.json"
    if tokens == "none":
        file.unlink()
        (model / "tokenizer_config.json").unlink()
        return
    said = json.loads(file.read_text())
    said["model"]["vocab"]["cat"] = 5000
    file.write_text(json.dumps(said))


def test_too_few_rows_to_train_on(capsys: Output, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat\n")
    for step in ("finetune", "distil", "correct"):
        words = ["--method", "svd:rank=2", "--method", step, "--data", tmp_path / "a.txt", "-o", tmp_path / "out"]
        assert "rows" in complaint(capsys, "compress", broken, *words)


def test_in_python(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 7}\n')
    with pytest.raises(UserError, match="the field 'text' must be text"):
        compress(str(broken), "svd", keep=0.5, data=str(tmp_path / "a.jsonl"))
    spoil(broken, "far")
    with pytest.raises(UserError, match="gives the token 5000"):
        compress(str(broken), "svd", keep=0.5, data=["the cat"])
