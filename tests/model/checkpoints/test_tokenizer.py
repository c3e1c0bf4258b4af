"""A tokenizer is there and whole, or not there; one that is damaged is an error."""

import json
import re
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.errors import UserError
from laconic.model import load
from laconic.model.checkpoints import location
from laconic.model.loading import load_tokenizers
from tests.architectures import BY_NAME
from tests.tokens import letters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["gpt2"].model().save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", b"", r"'tokenizer\.json' of the model .* cannot be read: it is not JSON"),
        (
            "tokenizer.json",
            b'{"version": "1.0", "mod',
            r"'tokenizer\.json' of the model .* cannot be read: it is not JSON",
        ),
        ("tokenizer.json", b"\xff\xfe", "cannot be read: it is not text"),
        (
            "tokenizer.json",
            b"{}",
            r"The tokenizer of the model .* cannot be read although it has tokenizer_config",
        ),
        ("tokenizer_config.json", b"{", r"'tokenizer_config\.json' of the model .* cannot be read: it is not JSON"),
        ("tokenizer_config.json", b"[]", "must be a JSON object"),
        ("tokenizer_config.json", b'{"model_max_length": "x"}', "model_max_length must be a number of .*; got 'x'"),
        ("tokenizer_config.json", b'{"model_max_length": -5}', "model_max_length must be a number of .*; got -5"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": 3}',
            "cannot be read .*; fetch it again, or remove its",
        ),
    ],
)
def test_damaged(folder: Path, name: str, content: bytes, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_bytes(content)
    for read in (load, load_tokenizers):
        with pytest.raises(UserError, match=sentence):
            read(str(folder))
    assert status(["inspect", str(folder)]) == 2
    assert re.search(sentence, capsys.readouterr().err.splitlines()[-1])


def test_of_a_later_version(folder: Path) -> None:
    """The package tokenizers raises a bare Exception for a file that it cannot read."""
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "model": {"type": "OfTomorrow"}}))
    with pytest.raises(UserError, match=r"The tokenizer of the model .* cannot be read .*; fetch it again"):
        load(str(folder))


def test_a_vocabulary_that_is_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot be read although it has tokenizer_config\.json"):
        load(str(folder))
    (folder / "tokenizer_config.json").unlink()
    assert load(str(folder)).tokenizer is None


def test_one_that_is_given_is_taken_for_a_damaged_one(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    own = letters()
    assert load_tokenizers(str(folder), own) == (own, None)


def test_a_file_is_read_again_only_after_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "tokenizer.json", list[Path]()
    original = location.read_json
    monkeypatch.setattr(location, "read_json", lambda path, *rest: read.append(path) or original(path, *rest))
    place = location.Location(str(tmp_path), tmp_path)
    place.check_json("tokenizer.json")
    file.write_text("{}")
    for _ in range(2):
        place.check_json("tokenizer.json")
    assert read == [file]
    file.write_text("{} and more")
    for _ in range(2):
        with pytest.raises(UserError, match="is not JSON"):
            place.check_json("tokenizer.json")
