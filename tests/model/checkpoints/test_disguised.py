"""Archives, folders around a model, and notes of Git LFS are told for what they are."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.model import check_model
from tests.architectures import BY_NAME
from tests.tokens import letters

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    BY_NAME["gpt2"].model().save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


def packed(kind: str) -> Callable[[Path, Path], Path]:
    return lambda saved, to: Path(shutil.make_archive(str(to / "model"), kind, saved.parent, saved.name))


def seven(saved: Path, to: Path) -> Path:
    (to / "model.7z").write_bytes(b"7z\xbc\xaf\x27\x1c\x00\x04")
    return to / "model.7z"


@pytest.mark.parametrize(
    "make", [packed("zip"), packed("tar"), packed("gztar"), packed("bztar"), packed("xztar"), seven]
)
@pytest.mark.parametrize("within", ["", "model", "model/config.json"])
def test_archives(saved: Path, tmp_path: Path, make: Callable[[Path, Path], Path], within: str) -> None:
    archive = make(saved, tmp_path).rename(tmp_path / "model")
    with pytest.raises(UserError, match=rf"^'{archive}' is an archive; unpack it, and give the folder with the config"):
        check_model(str(archive / within))
    assert tarfile.is_tarfile(archive) or archive.read_bytes()[:2] in (b"PK", b"7z")


def test_a_folder_around_a_model_says_where_it_is(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "checkpoint-1")
    with pytest.raises(
        UserError, match=rf"has no config\.json; there is one in '{tmp_path}/run/checkpoint-1': give that\.$"
    ):
        check_model(str(tmp_path / "run"))
    shutil.copytree(saved, tmp_path / "run" / "checkpoint-2")
    with pytest.raises(UserError, match=r"; 2 folders in it have one, such as '\S+/run/checkpoint-2': give that\.$"):
        check_model(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "config.json",
            "The file 'config.json' of the model '.*' is a pointer of Git LFS, not the file itself; fetch the file",
        ),
        ("tokenizer.json", "The file 'tokenizer.json' of the model '.*' is a pointer of Git LFS"),
        (
            "model.safetensors",
            "cannot be loaded: 'model.safetensors' is a pointer of Git LFS, not the file itself; fetch",
        ),
        (
            "pytorch_model.bin",
            "cannot be loaded: 'pytorch_model.bin' is a pointer of Git LFS, not the file itself; fetch",
        ),
    ],
)
def test_notes_of_git(saved: Path, tmp_path: Path, name: str, sentence: str) -> None:
    shutil.copytree(saved, tmp_path / "model")
    if name == "pytorch_model.bin":
        (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_text(POINTER)
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path / "model"))


def test_a_note_of_git_in_place_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text(POINTER)
    with pytest.raises(
        UserError, match=r"^'\S+/model\.gguf' is a pointer of Git LFS, not the file itself; fetch the file"
    ):
        check_model(str(tmp_path / "model.gguf"))
