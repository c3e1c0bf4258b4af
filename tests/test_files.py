"""A home folder is put in place of its ~ everywhere, files are written whole, and one process holds a lock."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

import laconic
from laconic.calibrate.sources import check_source
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.files import expand_user, hold_lock, replacing, report_unwritable
from laconic.store import check_output

NOBODY = "~no-such-user"
SENTENCE = f"The path '{NOBODY}/x' begins with the home of a user who is not known on this machine"


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/model") == tmp_path / "model"
    assert expand_user(Path("a/~/b")) == Path("a/~/b")


@pytest.mark.parametrize(
    "use",
    [
        expand_user,
        lambda path: check_output(Path(path)),
        lambda path: check_output(Path("out"), path),
        lambda path: check_source(path, "train"),
    ],
)
def test_the_home_of_nobody(use: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(SENTENCE)}"):
        use(f"{NOBODY}/x")


def test_the_command_line_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["export", "no-model", "--to", "onnx", "-o", f"{NOBODY}/x"]) == 2
    assert capsys.readouterr().err.startswith(SENTENCE)


def test_nobody_else_expands_a_path() -> None:
    folder = Path(laconic.__file__).parent
    own = {file.relative_to(folder).as_posix() for file in folder.rglob("*.py") if ".expanduser()" in file.read_text()}
    assert own == {"files.py", "model/checkpoints/location.py"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path, flush=True) as partial:
        partial.write_text("first")
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "full"), "free some space, and run the same command again"),
        (SafetensorError("Disk quota exceeded (os error 122)"), "free some space, and run the same command again"),
        (OSError(errno.EROFS, "locked"), "make its folder writable, and run the same command again"),
        (OSError(errno.ENAMETOOLONG, "too long"), "name another output"),
        (SafetensorError("Input/output error (os error 5)"), "name another output"),
        (SafetensorError("no code"), "name another output"),
    ],
    ids=str,
)
def test_the_remedy_fits_the_reason(error: Exception, remedy: str) -> None:
    with (
        pytest.raises(UserError, match=rf"^'file' cannot be written: .*; {remedy}\.$"),
        report_unwritable(Path("file")),
    ):
        raise error


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with pytest.raises(KeyError), hold_lock(file, "Wait."):
        with pytest.raises(UserError, match=r"^Wait\.$"), hold_lock(file, "Wait."):
            pass
        assert file.exists()
        raise KeyError
    assert not file.exists()
    with hold_lock(file, "Wait."):
        pass


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="lock' cannot be written: "), hold_lock(tmp_path / "file" / "lock", "Wait."):
        pass
