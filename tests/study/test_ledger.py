"""The ledger: records that are whole, leases that one runner has, and files that are let alone."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.study.ledger import CELLS, InvalidFile, Ledger
from laconic.study.shared_folder import STALE_SECONDS, Folder

RECORD = {"version": 1, "key": "a" * 16, "state": "done", "axes": {}, "seconds": {"total": 1.0}}


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of this machine, and one at a URL."""
    return str(tmp_path / "study") if request.param == "folder" else f"memory://{tmp_path}/study"


def test_what_is_written_is_found(place: str) -> None:
    ledger = Ledger(place)
    assert ledger.read(RECORD["key"]) is None
    ledger.write(RECORD)
    assert ledger.read(RECORD["key"]) == RECORD == Ledger(place).read(RECORD["key"])
    assert ledger.all() == ([RECORD], [])
    ledger.remove(RECORD["key"])
    assert Ledger(place).all() == ([], [])


def test_one_of_two_runners_has_a_cell(place: str) -> None:
    one, two = Ledger(place), Ledger(place)
    assert one.claim("x") and not two.claim("x")
    one.leases.release("x")
    assert two.claim("x")
    two.write({**RECORD, "key": "x"})
    assert not one.claim("x"), "it is done"
    assert Ledger(place).all()[1] == [], "no lease is left"


def lease(place: Path, owner: str, renewed: float) -> None:
    (place / CELLS).mkdir(parents=True, exist_ok=True)
    (place / CELLS / "x.lease").write_text(json.dumps({"owner": owner, "renewed": renewed}))


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_a_lease_that_is_not_renewed_can_be_taken_over_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(import_module("laconic.study.shared_folder").time, "monotonic", lambda: now[0])
    ledger = Ledger(str(tmp_path))
    lease(tmp_path, "elsewhere 1 x", time.time() + ahead)
    assert not ledger.claim("x")
    now[0] += STALE_SECONDS - 1
    assert not ledger.claim("x")
    lease(tmp_path, "elsewhere 1 x", time.time() + ahead + 10)
    now[0] += 2
    assert not ledger.claim("x"), "it was renewed"
    now[0] += STALE_SECONDS + 1
    assert ledger.claim("x")


def test_a_runner_that_slept_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("laconic.study.shared_folder"), "RENEW_SECONDS", 0.01)
    one = Ledger(str(tmp_path))
    with one.leases.renewing():
        assert one.claim("x")
        lease(tmp_path, "elsewhere 1 x", time.time())
        taken = (tmp_path / CELLS / "x.lease").read_text()
        time.sleep(0.1)
        assert (tmp_path / CELLS / "x.lease").read_text() == taken, "renewed by one who lost it"
        one.write({**RECORD, "key": "x"})
    assert (tmp_path / CELLS / "x.lease").read_text() == taken, "removed by one who lost it"


def test_a_lease_of_a_process_that_is_gone_can_be_taken_over(tmp_path: Path) -> None:
    said = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True)
    lease(tmp_path, f"{socket.gethostname()} {os.getppid()} x", time.time())
    assert not Ledger(str(tmp_path)).claim("x")
    lease(tmp_path, f"{socket.gethostname()} {said.strip()} x", time.time())
    assert Ledger(str(tmp_path)).claim("x")


def test_a_lease_of_a_finished_cell_is_removed_and_no_other(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    for name in ("x", "a" * 16):
        (tmp_path / CELLS / f"{name}.lease").write_text(json.dumps({"owner": "elsewhere 1 x", "renewed": time.time()}))
    ledger.write(RECORD)
    ledger.remove_stale_leases()
    assert {file.name for file in (tmp_path / CELLS).glob("*.lease")} == {"x.lease"}


def test_leases_end_with_the_block(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), ledger.leases.renewing():
        assert ledger.claim("x")
        raise KeyboardInterrupt
    assert Ledger(str(tmp_path)).claim("x")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("b.json", "{", "it cannot be read as JSON"),
        ("b.json", "[1]", "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "version": 2}), "it is of version 2, and this is version 1"),
        ("b.json", json.dumps(RECORD), f"it holds the cell {RECORD['key']}"),
        ("notes.txt", "hello", "it cannot be read as JSON"),
        ("b.json", b"\xff\xfe", "it cannot be read as JSON"),
        ("b.json", json.dumps({**RECORD, "key": "b", "axes": ["a"]}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "axes": None}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "bytes": "x"}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "dense_bytes": [1]}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "file_bytes": "x"}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "state": "new"}), "it is no record of a study"),
        ("b.json", "", "it cannot be read as JSON"),
        ("b.json", json.dumps(RECORD)[:40], "it cannot be read as JSON"),
        ("b.json", "null", "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "seconds": 3}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "seconds": {}}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "state": "failed"}), "it is no record of a study"),
        ("b.json", json.dumps({**RECORD, "key": "b", "evaluation": [1]}), "it is no record of a study"),
        *(
            ("b.json", json.dumps({name: value for name, value in RECORD.items() if name != left}), reason)
            for left, reason in (*((name, "it is no record of a study") for name in RECORD),)
        ),
    ],
)
def test_what_is_no_record_is_told_of_and_left_alone(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    ledger = Ledger(str(tmp_path))
    file = tmp_path / CELLS / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = file.read_bytes()
    assert ledger.all() == ([], [InvalidFile(name, reason)])
    if name == "b.json":
        assert not ledger.claim("b"), "its place is taken"
    assert file.read_bytes() == before
    moved = ledger.move_invalid("b")
    if name != "b.json":
        assert moved is None and file.read_bytes() == before
        return
    assert moved is not None and moved.reason == reason
    assert (tmp_path / moved.name).read_bytes() == before and not file.exists()
    assert ledger.move_invalid("b") is None and ledger.all() == ([], [])
    assert ledger.claim("b"), "its place is free"
    ledger.write({**RECORD, "key": "b"})
    assert ledger.move_invalid("b") is None and ledger.read("b") == {**RECORD, "key": "b"}


def test_what_is_damaged_again_hides_nothing(place: str) -> None:
    ledger, folder = Ledger(place), Folder(f"{place}/{CELLS}")
    moved = set()
    for text in ("{", "{{"):
        folder.write("b.json", text)
        found = ledger.move_invalid("b")
        assert found is not None
        moved.add(folder.read(found.name.removeprefix(f"{CELLS}/")))
    assert moved == {b"{", b"{{"}


def test_a_folder_among_the_records_is_told_of(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    (tmp_path / CELLS / "b.json").mkdir()
    assert ledger.all() == ([], [InvalidFile("b.json", "it cannot be read: Is a directory")])
    assert not ledger.claim("b")
    assert ledger.move_invalid("b") is not None and ledger.claim("b")


def test_a_place_without_folders_is_empty_before_its_first_file(place: str) -> None:
    ledger = Ledger(place)
    folder = Folder(place)
    folder._files.rm(folder._path(CELLS), recursive=True)
    assert ledger.all() == ([], [])


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"The folder '.*file/cells' cannot be used"):
        Ledger(str(tmp_path / "file"))
    with pytest.raises(UserError, match="The folder 'nosuch://x/cells' cannot be used"):
        Ledger("nosuch://x")


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger(str(tmp_path))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device\. Free some space or name another folder"):
        ledger.write(RECORD)
    assert list((tmp_path / CELLS).iterdir()) == []


def test_names_are_those_of_files_that_are_not_hidden(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("b", "1")
    folder.write("a", "2")
    with folder.lock():
        assert folder.names() == ["a", "b"]
    assert folder.read("a") == b"2" and folder.read("c") is None
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]
