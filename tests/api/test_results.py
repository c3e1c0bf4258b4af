"""Results print, show in a notebook, go into pandas, and are what the command line prints as JSON."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import laconic
from laconic.api.results import Result
from laconic.errors import UserError
from laconic.report.tables import Column, Table
from tests.cli.printed import Output, said
from tests.tokens import letters

TIMES = {"seconds", "latency", "finished", "seconds_within_cells"}
ODD = "<script>alert('a & b')</script>"


class Odd(Result):
    """A result whose texts would be code in a page."""

    def to_dict(self):
        return {}

    def _rows(self):
        return [{ODD: 1}]

    def _headline(self):
        return ODD

    def _table(self):
        return Table((Column(ODD), Column("number", "{:.1f}")), ((ODD, 1.0),) * 30)

    def _notes(self):
        return [ODD]

    def parts(self):
        return iter(())


def without_times(value: Any) -> Any:
    """Plain values as JSON has them, without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [without_times(part) for part in value]
    return value


def same(result: Result, printed: dict[str, object], *but: str) -> None:
    """Raise unless the function returned what the verb printed."""
    ours = json.loads(json.dumps(result.to_dict(), default=str))
    assert without_times(ours) | dict.fromkeys(but) == without_times(printed) | dict.fromkeys(but)


def in_memory(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder)


def test_texts_are_escaped_and_colours_are_those_of_the_notebook() -> None:
    html = Odd()._repr_html_()
    assert "<script>" not in html and html.count("&lt;script&gt;alert(&#x27;a &amp; b&#x27;)") == 23
    assert "10 more rows" in html
    assert "background" not in html and "color:inherit" in html
    assert repr(Odd()) == f"<Odd: {ODD}>"


def test_compress(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    lines = texts.read_text().splitlines()
    printed = said(capsys, "compress", tiny_model, "--method", "wanda", "--keep", 0.6, "--data", texts, "--samples", 6,
                   "--targets", "ffn", "-o", tmp_path / "verb")  # fmt: skip
    options: dict[str, Any] = {"method": "wanda", "keep": 0.6, "samples": 6, "targets": "ffn"}
    by_name = laconic.compress(tiny_model, data=texts, output=tmp_path / "name", **options)
    same(by_name, printed, "output")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    loaded = laconic.compress(in_memory(tiny_model), data=lines, tokenizer=tokenizer, **options)
    assert loaded.save(tmp_path / "loaded") == tmp_path / "loaded"
    files = {name: {path.name for path in (tmp_path / name).iterdir()} for name in ("verb", "name", "loaded")}
    # Texts in memory have no source that a recipe could name.
    assert files["verb"] == files["name"] == files["loaded"] | {"recipe.yaml"}
    for name in ("recipe.yaml", "plan.yaml", "model.safetensors"):
        assert (tmp_path / "verb" / name).read_bytes() == (tmp_path / "name" / name).read_bytes()
    assert (tmp_path / "loaded" / "plan.yaml").read_bytes() == (tmp_path / "verb" / "plan.yaml").read_bytes()
    assert type(by_name.model) is type(loaded.model) and loaded.tokenizer is tokenizer
    states = by_name.model.state_dict(), loaded.model.state_dict(), in_memory(tmp_path / "verb").state_dict()
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name])
               for name, tensor in states[0].items())  # fmt: skip
    assert (by_name.bytes, by_name.dense_bytes) == (printed["bytes"], printed["dense_bytes"])
    site = by_name.sites["bert.encoder.layer.0.intermediate.dense"]
    assert site.method is not None and site.method.name == "wanda"
    assert sum(site.bytes or 0 for site in by_name.sites.values()) == by_name.bytes
    frame = by_name.to_frame()
    assert list(frame.columns) == ["site", "method", "parameters", "bytes", "share"]
    assert list(frame["site"]) == list(by_name.sites) and (frame["share"] <= 0.62).all()
    assert "2 wanda" not in repr(by_name) and "4 matrices:" in repr(by_name) and "wanda" in str(by_name)
    assert "<td" in by_name._repr_html_()


def test_a_matrix_that_a_later_step_removed_has_no_bytes(tiny_model: Path) -> None:
    found = laconic.compress(tiny_model, ["svd:rank=4", "shorten:blocks=[1]"]).to_frame()
    gone = found["site"].str.contains("layer.1")
    assert found["bytes"].isna().tolist() == gone.tolist()


def test_saving_is_whole_or_not_at_all(tiny_model: Path, tmp_path: Path) -> None:
    small = laconic.compress(in_memory(tiny_model), "svd:rank=4")
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", "", 3):
        with pytest.raises(UserError, match=r"output|exists already"):
            small.save(folder)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="exists already"):
        laconic.compress(tmp_path / "nowhere", "svd:rank=4", output=tmp_path / "there")


def test_run(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    recipe = {
        "model": tiny_model,
        "steps": [{"compress": {"method": {"svd": {"rank": 4}}, "targets": ("ffn",)}}],
        "evaluate": {"cost": {"batch": [1], "length": [4]}},
    }
    made = laconic.run(recipe, tmp_path / "function", **{"steps[0].compress.method.svd.rank": 2})
    printed = said(capsys, "run", tmp_path / "function" / "recipe.yaml", "-o", tmp_path / "verb")
    same(made, printed, "output")
    assert set(made.to_frame()["method"]) == {"svd"} and "rank=2" in str(made)
    planned = laconic.run(recipe, plan=tmp_path / "verb" / "plan.yaml")
    assert planned.record.output is None and planned.record.evaluation is None
    assert planned.to_dict()["sites"] == printed["sites"]
    for wrong, sentence in [
        ("sst2-kfac", "did you mean 'sst2-kfac-svd'"),
        (3, "recipe must be a file, the name of a recipe"),
        ({**recipe, "data": object()}, "recipe must be made of numbers, texts, lists and mappings"),
        ({**recipe, "sample": 3}, "recipe: There is no key 'sample': did you mean 'samples'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            laconic.run(wrong, tmp_path / "no")
    with pytest.raises(UserError, match=r"^recipe\.samples must be"):
        laconic.run(recipe, tmp_path / "no", samples=0)


def test_evaluate(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    small = laconic.compress(tiny_model, "svd:rank=2", output=tmp_path / "small")
    task = f"fidelity:{texts}"
    printed = said(capsys, "evaluate", tmp_path / "small", "--tasks", task, "--against", tiny_model, "--batch", 1,
                   "--length", 4)  # fmt: skip
    given: dict[str, Any] = {"tasks": task, "batch": 1, "length": 4}
    by_name = laconic.evaluate(tmp_path / "small", against=tiny_model, **given)
    same(by_name, printed)
    original = in_memory(tiny_model).to(torch.bfloat16).to(torch.float32).train()
    loaded = laconic.evaluate(small.model, against=in_memory(tiny_model), **given)
    assert loaded.fidelity is not None and by_name.fidelity is not None
    assert loaded.fidelity.kl == pytest.approx(by_name.fidelity.kl, abs=1e-6)
    assert loaded.cost is not None and f"KL {loaded.fidelity.kl:.4g}" in repr(loaded)
    assert list(loaded.to_frame()["model"]) == ["this model", "original"]
    with_mode = laconic.evaluate(original, batch=1, length=4)
    assert original.training and with_mode.fidelity is None and "<td" in with_mode._repr_html_()
    for wrong, sentence in [
        ({"limit": 0}, "limit must be at least 1 row; got 0"),
        ({"batch": 0}, "batch must be whole numbers above 0"),
        ({"length": [2**31]}, "length must be at most"),
        ({"runtime": "eagre"}, "did you mean 'eager'"),
        ({"tasks": "glue/sts2"}, "did you mean"),
        ({"tasks": 3}, "tasks must be the name of a task"),
        ({"against": 3}, "against must be a loaded model"),
        ({"device": "abacus"}, "device must be cpu, cuda or cuda:N; got 'abacus'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            laconic.evaluate(tiny_model, **wrong)  # type: ignore[arg-type]


def test_inspect(capsys: Output, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    printed = said(capsys, "inspect", tiny_model, "--data", texts, "-o", tmp_path / "verb")
    by_name = laconic.inspect(tiny_model, data=texts)
    same(by_name, printed)
    by_name.save(tmp_path / "function")
    assert {path.name for path in (tmp_path / "verb").iterdir()} == {p.name for p in (tmp_path / "function").iterdir()}
    assert (tmp_path / "verb" / "inspect.json").read_text() == (tmp_path / "function" / "inspect.json").read_text()
    loaded = laconic.inspect(in_memory(tiny_model), data=texts.read_text().splitlines())
    assert without_times(loaded.to_dict())["sites"] == without_times(printed)["sites"]
    assert loaded.activity is not None and loaded.activity.source == "memory"
    frame = loaded.to_frame()
    assert len(frame) == len(loaded.anatomy.sites) and {"name", "group", "nbytes", "sparsity"} <= set(frame.columns)
    assert "stored as float32" in repr(loaded) and "attention" in loaded._repr_html_()
    for wrong, sentence in [
        ({"model": 3}, "model must be a loaded model"),
        ({"model": tiny_model, "data": []}, "data has no texts"),
        ({"model": tiny_model, "output": tmp_path}, "exists already"),
    ]:
        with pytest.raises(UserError, match=sentence):
            laconic.inspect(**wrong)  # type: ignore[arg-type]


def test_export(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    printed = said(capsys, "export", tiny_model, "--to", "onnx", "-o", tmp_path / "verb")
    by_name = laconic.export(tiny_model, to="onnx", output=tmp_path / "function")
    same(by_name, printed, "output", "agreement")
    loaded = laconic.export(in_memory(tiny_model), "onnx", tmp_path / "loaded")
    assert loaded.bytes == by_name.bytes and loaded.error < 1e-3 and loaded.output == tmp_path / "loaded"
    assert isinstance(loaded.to_frame(), pandas.DataFrame)
    assert str(tmp_path / "loaded") in repr(loaded) and str(tmp_path / "loaded") in loaded._repr_html_()
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        laconic.export(tmp_path / "nowhere", "onxx", tmp_path / "no")
    with pytest.raises(UserError, match="exists already"):
        laconic.export(tmp_path / "nowhere", "onnx", tmp_path / "verb")


def test_study(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    axes = {"model": [str(tiny_model)], "method": ["svd:multiple=1"], "keep": [0.5, 0.3]}
    file.write_text(json.dumps({"axes": axes, "cost": {"batch": [1], "length": [4]}}))
    changes: dict[str, Any] = {"axes.keep": [0.4]}
    planned = laconic.study(file, tmp_path / "s", dry_run=True, **changes)
    same(planned, said(capsys, "study", file, "axes.keep=[0.4]", "-o", tmp_path / "s", "--dry-run"))
    assert planned.to_frame()["state"].tolist() == ["to do"] * 2 and not (tmp_path / "s").exists()
    done = laconic.study(file, tmp_path / "s", **changes)
    assert (done.to_dict()["measured"], done.page) == (2, tmp_path / "s" / "report.html")
    frame = done.to_frame()
    assert frame["state"].tolist() == ["done"] * 2 and frame["keep"].tolist()[1] == 0.4
    # Nothing is left to do, however it is started again.
    again = said(capsys, "study", file, "axes.keep=[0.4]", "-o", tmp_path / "s")
    same(laconic.study(json.loads(file.read_text()), tmp_path / "s", **changes), again)
    assert again["found"] == 2 and "svd" in str(done) and "svd" in done._repr_html_()
    for wrong, sentence in [
        ({"study": "quik"}, "did you mean 'quick'"),
        ({"study": file, "workers": 0}, "workers must be at least 1; got 0"),
        ({"study": file, "executor": "rey"}, "executor must be one of local, ray; got 'rey'"),
        ({"study": file, "address": "here"}, "address is for the executor ray"),
        ({"study": file, "limit": 0}, r"study\.limit must be"),
    ]:
        with pytest.raises(UserError, match=sentence):
            laconic.study(output=tmp_path / "no", **wrong)  # type: ignore[call-overload]


def test_load_and_materialize(tiny_model: Path, tmp_path: Path) -> None:
    small = laconic.compress(tiny_model, "svd:rank=2", output=tmp_path / "small").model
    for folder in (tiny_model, tmp_path / "small", str(tmp_path / "small")):
        model, tokenizer = laconic.load(folder)
        again = in_memory(Path(folder))
        assert type(model) is type(again) and tokenizer is not None and not model.training
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    inputs = torch.tensor([[2, 3, 4]])
    dense = laconic.materialize(tmp_path / "small")
    assert type(dense) is type(small) and torch.allclose(dense(inputs).logits, small.eval()(inputs).logits, atol=1e-6)
    in_memory(tiny_model).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert laconic.load(tmp_path / "half").model.dtype is torch.bfloat16
    for wrong in (tmp_path / "nowhere", small, None):
        with pytest.raises(UserError):
            laconic.load(wrong)  # type: ignore[arg-type]


def test_a_wrong_argument_is_one_sentence_and_names_the_option_on_the_command_line(
    capsys: Output, tmp_path: Path
) -> None:
    from tests.cli.printed import complaint

    for option, arguments in {"--samples 0": {"samples": 0}, "--allocate fair": {"allocate": "fair"}}.items():
        with pytest.raises(UserError) as error:
            laconic.compress(tmp_path / "nowhere", "svd", 0.5, **arguments)
        printed = complaint(capsys, "compress", tmp_path / "nowhere", "--method", "svd", "--keep", 0.5,
                            *option.split(), "-o", tmp_path / "out")  # fmt: skip
        assert printed == f"--{error.value}"


def test_a_tokenizer_is_given_for_a_model_in_memory(tiny_model: Path) -> None:
    model = in_memory(tiny_model)
    model.config._name_or_path = ""
    with pytest.raises(UserError, match=r"pass tokenizer=\."):
        laconic.inspect(model, data=["a cat"])
    assert laconic.inspect(model, data=["a cat"] * 4, tokenizer=letters()).activity is not None
