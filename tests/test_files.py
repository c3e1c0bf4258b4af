"""A home folder is put in place of its ~ everywhere, and one that is not there is a mistake."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import laconic
from laconic.calibrate.sources import check_source
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.files import expand_user, replacing
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
