"""Code that lies beside a model is never run, and nobody is asked about it."""

import builtins
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from laconic.cli.main import status
from laconic.errors import CheckpointNotice, UserError
from laconic.model import check_model, load
from laconic.model.loading import load_tokenizers
from laconic.store import save
from tests.architectures import BY_NAME, outputs

CODE = "from pathlib import Path\nPath(__file__).with_name('run').touch()\nraise SystemExit\n"
OWN = {
    "AutoConfig": "code_of_its_own.OwnConfig",
    "AutoModel": "code_of_its_own.OwnModel",
    "AutoModelForSequenceClassification": "code_of_its_own.OwnForSequenceClassification",
}


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the user was asked")

    monkeypatch.setattr(builtins, "input", asked)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A classifier with a tokenizer, and code that leaves a trace if it is run."""
    there = tmp_path / "model"
    shutil.copytree(tiny_model, there)
    (there / "code_of_its_own.py").write_text(CODE)
    (there / "custom_generate").mkdir()
    (there / "custom_generate" / "generate.py").write_text(CODE)
    return there


def change(file: Path, **values: object) -> None:
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**said, **values}))


def nothing_was_run(folder: Path) -> bool:
    return not list(folder.rglob("run")) and not any("code_of_its_own" in name for name in sys.modules)


@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": OWN, "model_type": "own"},
        {"auto_map": OWN, "model_type": None},
        {"auto_map": OWN, "architectures": ["OwnForSequenceClassification"]},
        {"auto_map": {"AutoConfig": "someone/else--code_of_its_own.OwnConfig"}, "model_type": "own"},
        {"model_type": "bert", "inner": {"model_type": "own", "auto_map": OWN}},
    ],
)
def test_a_model_that_needs_code_is_refused(folder: Path, values: dict[str, object]) -> None:
    change(folder / "config.json", **values)
    for read in (check_model, load):
        with pytest.raises(UserError, match=r"needs custom code, .*config\.json.*code_of_its_own\.Own.* never runs"):
            read(str(folder))
    assert nothing_was_run(folder)


def test_where_transformers_has_the_class_it_is_used_and_a_notice_says_so(folder: Path, tmp_path: Path) -> None:
    plain = load(str(folder)).model
    change(folder / "config.json", auto_map=OWN)
    change(folder / "preprocessor_config.json", auto_map={"AutoProcessor": "code_of_its_own.OwnProcessor"})
    with pytest.warns(
        CheckpointNotice, match=r"custom code \(.*\), which is not run: transformers' own class for 'bert'"
    ):
        lm = load(str(folder))
    assert torch.equal(outputs(lm.model), outputs(plain))
    assert nothing_was_run(folder)
    save(lm, tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("named", [{"AutoTokenizer": [None, "code_of_its_own.Own"]}, ["code_of_its_own.Own", None]])
def test_a_tokenizer_that_needs_code_is_refused(folder: Path, named: object) -> None:
    change(folder / "tokenizer_config.json", auto_map=named, tokenizer_class="OwnTokenizer")
    for read in (check_model, load, load_tokenizers):
        with pytest.raises(UserError, match=r"needs custom code, which its tokenizer_config\.json names"):
            read(str(folder))
    assert nothing_was_run(folder)


def test_a_tokenizer_that_transformers_has(folder: Path, tmp_path: Path) -> None:
    plain = load_tokenizers(str(folder))[0]
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "code_of_its_own.Own"]})
    lm = load(str(folder))
    assert plain is not None and lm.tokenizer is not None
    assert lm.tokenizer("the cat is good")["input_ids"] == plain("the cat is good")["input_ids"]
    assert nothing_was_run(folder)
    save(lm, tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_code_that_generates_is_left_alone(tmp_path: Path) -> None:
    BY_NAME["gpt2"].model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "custom_generate").mkdir()
    (tmp_path / "model" / "custom_generate" / "generate.py").write_text(CODE)
    lm = load(str(tmp_path / "model"))
    assert lm.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)
    assert nothing_was_run(tmp_path)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "someone/a-kernel", "unheard-of"])
def test_how_attention_is_computed_is_not_fetched(folder: Path, implementation: str) -> None:
    plain = load(str(folder)).model
    change(folder / "config.json", attn_implementation=implementation)
    assert torch.equal(outputs(load(str(folder)).model), outputs(plain))


VERBS = {
    "compress": "compress {own} --method svd --keep 0.5 -o {out}",
    "run": "run {recipe} -o {out}",
    "teacher": "compress {good} --method distil:teacher={own},rows=2 --data {texts} -o {out}",
    "student": "compress {good} --method student:model={own} -o {out}",
    "evaluate": "evaluate {own}",
    "against": "evaluate {good} --against {own}",
    "inspect": "inspect {own}",
    "export": "export {own} --to onnx -o {out}",
    "study": "study {study} -o {out}",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_every_verb_refuses_by_name(
    verb: str,
    where: str,
    folder: Path,
    tiny_model: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if where == "config.json":
        change(folder / where, auto_map=OWN, model_type="own")
    else:
        change(
            folder / where, auto_map={"AutoTokenizer": [None, "code_of_its_own.Own"]}, tokenizer_class="OwnTokenizer"
        )
    (tmp_path / "recipe.yaml").write_text(f"model: {folder}\nsteps: [compress: {{method: svd, keep: 0.5}}]\n")
    study = f"axes: {{model: [{folder}], method: [svd], keep: [0.5]}}\ntasks: ['fidelity:{texts}']\n"
    (tmp_path / "study.yaml").write_text(study)
    names = {"own": folder, "good": tiny_model, "texts": texts, "out": tmp_path / "out"}
    files = {"recipe": tmp_path / "recipe.yaml", "study": tmp_path / "study.yaml"}
    assert status(VERBS[verb].format(**names, **files).split()) == 2
    said = capsys.readouterr().err
    assert f"'{folder}' needs custom code, which its {where} names" in said
    assert len(said.splitlines()) == 1
    assert nothing_was_run(folder)
    assert not (tmp_path / "out").exists()
