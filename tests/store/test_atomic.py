"""An output folder is tried before any work, because permissions alone do not tell whether a file can be written."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.store.atomic import check_output

Check = Callable[..., Path]
BOTH = pytest.mark.parametrize("check", [check_output, partial(check_output, exist_ok=True)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, a link to it, a file, and links that lead to each other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    return tmp_path


@BOTH
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/out", "file' is not a folder that you may write to"),
        ("file/deeper/out", "file' is not a folder that you may write to"),
        ("loop/out", "loop' is not a folder that you may write to"),
        ("/proc/out", r"'/proc' is not a folder that you may write to \(.+\)"),
        ("/proc/deeper/out", r"'/proc' is not a folder that you may write to \(.+\)"),
        ("/dev/null/out", "'/dev/null' is not a folder that you may write to"),
        ("n" * 245, "its name is too long; give a shorter one"),
        (f"new/{'é' * 130}/out", "its name is too long; give a shorter one"),
        ("n" * 5000, "its name is too long; give a shorter one"),
    ],
)
def test_a_place_that_takes_no_folder_is_named(here: Path, check: Check, place: str, reason: str) -> None:
    before = sorted(here.iterdir())
    with pytest.raises(UserError, match=f"^The output '.*' cannot be made: .*{reason}\\.$"):
        check(Path(place))
    assert sorted(here.iterdir()) == before


@BOTH
@pytest.mark.parametrize(
    ("place", "said"), [("a\0b", r"'a\x00b' has the character NUL"), ("\udcff", "not named in UTF")]
)
def test_a_name_that_no_checkpoint_can_have_is_refused(here: Path, check: Check, place: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check(Path(place))


@BOTH
@pytest.mark.parametrize("model", ["", " ", "a\0b", "\ud800"])
def test_a_name_that_no_model_has_is_no_folder_around_the_output(here: Path, check: Check, model: str) -> None:
    """The check of the output accepts these names; the search for the model reports them."""
    assert check(Path("new"), model) == Path("new")


@BOTH
@pytest.mark.parametrize("model", ["model", "link", "./model/"])
@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("model", "is the folder of the model"),
        ("link", "is the folder of the model"),
        ("model/out", "lies in the folder of the model"),
        ("link/below/out", "lies in the folder of the model"),
        ("model/new/out", "lies in the folder of the model"),
    ],
)
def test_nothing_is_written_into_the_folder_of_a_model(
    here: Path, check: Check, model: str, place: str, where: str
) -> None:
    with pytest.raises(UserError, match=f"^The output '{place}' {where} '{model}'; name a folder outside of it"):
        check(Path(place), model)


@BOTH
def test_beside_a_model_there_is_room(here: Path, check: Check) -> None:
    before = sorted(here.iterdir())
    for place in ("model-4bit", "new/deeper/out", str(here / "out"), "n" * 220):
        assert check(Path(place), "model", "owner/name-of-the-hub") == Path(place)
    assert sorted(here.iterdir()) == before, "nothing is left of the trial"


def test_what_is_there_is_added_to_where_that_is_asked(here: Path) -> None:
    os.mkdir("there")
    assert check_output(Path("there"), "model", exist_ok=True) == Path("there")
    for place in ("there", "file", "loop"):
        with pytest.raises(UserError, match=f"^The output '{place}' exists already"):
            check_output(Path(place))
    for place in ("file", "loop"):
        with pytest.raises(UserError, match=f"^The output '{place}' is no folder"):
            check_output(Path(place), exist_ok=True)
