"""A model whose blocks are read from disk when they run is scored as one in memory."""

from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import load_file

import laconic
from laconic.errors import UserError
from laconic.evaluate.score_cache import fingerprint
from laconic.model.loading import load_streamed
from laconic.store import save
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer
from tests.loaned import change_tensor, nbytes


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("it was the best of times, it was the worst of times\na tale")
    return f"perplexity:{tmp_path / 'text.txt'}"


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt"])
def test_streamed_figures_are_those_in_memory(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    small, original = str(tmp_path / "small"), str(tmp_path / "original")
    save(with_tokenizer(name), Path(original))
    save(compress_everything(with_tokenizer(name), rank=6), Path(small))
    whole = laconic.evaluate(small, text, against=original, batch=1, length=8).to_dict()
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "other"))
    streamed = laconic.evaluate(small, text, against=original, stream=True).to_dict()
    assert "cost" not in streamed and streamed["original"]["cost"] is None
    for section in ("results", "fidelity", "settings"):
        assert streamed[section] == whole[section]
    assert streamed["original"]["results"] == whole["original"]["results"]


def test_nothing_stays_in_memory(tmp_path: Path):
    save(with_tokenizer("llama"), tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    before = nbytes(lm.model)
    with lm.loaned_on_call():
        lm.model(**lm.model.dummy_inputs)
        assert nbytes(lm.model) == before
    assert fingerprint(lm) == fingerprint(load_streamed(str(tmp_path / "model"))) and nbytes(lm.model) == before
    # A run that fails returns what it has borrowed.
    with pytest.raises(RuntimeError, match="stop"), lm.loaned_on_call():
        lm.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        lm.model(**lm.model.dummy_inputs)
    assert nbytes(lm.model) == before


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_change_of_any_tensor_outside_the_blocks_changes_the_fingerprint(name: str, tmp_path: Path):
    folder = str(tmp_path / "model")
    save(with_tokenizer(name), Path(folder))
    before = fingerprint(load_streamed(folder))
    assert fingerprint(load_streamed(folder)) == before
    state = load_streamed(folder).model.state_dict()
    outside = [key for key in load_file(f"{folder}/model.safetensors") if ".0." not in key and ".1." not in key]
    assert any(not state[key].is_meta for key in outside)
    for key in outside:
        stored = load_file(f"{folder}/model.safetensors")[key]
        change_tensor(folder, key, stored + 1)
        assert fingerprint(load_streamed(folder)) != before
        change_tensor(folder, key, stored)


def test_other_tasks_and_loaded_models_are_refused(text: str, tmp_path: Path):
    save(with_tokenizer("llama"), tmp_path / "model")
    with pytest.raises(UserError, match=r"With stream, perplexity .* got no task"):
        laconic.evaluate(str(tmp_path / "model"), stream=True)
    with pytest.raises(UserError, match=r"With stream, perplexity .* got 'fidelity:builtin:pydoc'"):
        laconic.evaluate(
            str(tmp_path / "model"), ["fidelity:builtin:pydoc"], against=str(tmp_path / "model"), stream=True
        )
    with pytest.raises(UserError, match="got the runtime 'onnx'; use 'eager'"):
        laconic.evaluate(str(tmp_path / "model"), text, runtime="onnx", stream=True)
    lm = with_tokenizer("llama")
    with pytest.raises(UserError, match="stream reads models from their files"):
        laconic.evaluate(lm.model, text, tokenizer=lm.tokenizer, stream=True)


def test_models_that_cannot_be_divided_are_compared_in_memory_only(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = str(tmp_path / "model")
    save(with_tokenizer("llama"), Path(folder))
    monkeypatch.setattr(import_module("laconic.model.halves"), "CLOSE", -1.0)
    assert laconic.evaluate(folder, text, stream=True).results
    with pytest.raises(UserError, match=f"'{folder}' does more with its last hidden states .* compare them in memory"):
        laconic.evaluate(folder, text, against=folder, stream=True)
