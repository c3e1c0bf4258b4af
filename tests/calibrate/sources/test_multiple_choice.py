"""Multiple choice is read from the fields of common data sets, and a wrong row is named with its line."""

from pathlib import Path
from typing import Any

import pytest

from laconic.calibrate.sources import read
from laconic.errors import UserError
from tests.calibrate.files import rows_of, write

pytestmark = pytest.mark.usefixtures("no_data_folder")


@pytest.mark.parametrize(
    ("row", "text", "choices", "label"),
    [
        ({"text": "a", "choices": ["b", "c"], "label": 1}, "a", ("b", "c"), 1),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": 0}, "a", ("b", "c"), 0),
        ({"sentence": "a _", "option1": "b", "option2": "c", "answer": "2"}, "a _", ("b", "c"), 1),
        ({"startphrase": "a", "ending0": "b", "ending1": "c", "label": 1}, "a", ("b", "c"), 1),
        ({"ctx": "a", "endings": ["b", "c"], "label": "1"}, "a", ("b", "c"), 1),
        ({"article": "x", "question": "a", "options": ["b", "c"], "answer": "B"}, "x a", ("b", "c"), 1),
        ({"premise": "a", "question": "cause", "choice1": "b", "choice2": "c", "label": 0}, "a", ("b", "c"), 0),
        (
            {"question": "a", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": "1"},
            "a",
            ("b", "c"),
            0,
        ),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, "a", ("b", "c"), 1),
        ({"question": "a", "choices": ["b", "c"], "answer": "c"}, "a", ("b", "c"), 1),
        ({"context": "x", "question": "a", "answer0": "b", "answer1": "c", "label": 1}, "x a", ("b", "c"), 1),
        ({"text": "a", "choices": ["b", "c"]}, "a", ("b", "c"), None),
        ({"text": "a", "choices": ["b", "c"], "label": "F"}, "a", ("b", "c"), "F"),
    ],
)
def test_choices_of_common_data_sets(
    tmp_path: Path, row: dict[str, Any], text: str, choices: tuple[str, ...], label: int | None
):
    [example] = rows_of(tmp_path, "a.jsonl", [row])
    assert (example.text, example.choices, example.label) == (text, choices, label)


def test_labels_of_choices_in_a_file_beside(tmp_path: Path):
    rows = [{"goal": "a", "sol1": "b", "sol2": "c"}] * 2
    write(tmp_path / "dev-labels.lst", "1\n0\n")
    assert [row.label for row in rows_of(tmp_path, "dev.jsonl", rows)] == [1, 0]
    write(tmp_path / "dev-labels.lst", "1\n")
    with pytest.raises(UserError, match=r"dev-labels.lst has 1 labels, and dev.jsonl 2 rows"):
        read(str(tmp_path / "dev.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", [{"text": "a", "choices": ["b"]}], r":1 has 1 choice in 'choices'; give it two or more"),
        ("a.jsonl", [{"choices": ["b", "c"]}], r":1 has choices and no text before them"),
        ("a.jsonl", [{"text": "a", "choices": ["b", 3]}], r":1: the field 'choices' must be a list of texts"),
        (
            "a.jsonl",
            [{"text": "a", "choices": ["b", "c"]}, {"text": "a", "choices": ["b", "c", "d"]}],
            r":2 has 3 choices, and .*a\.jsonl:1 2; give all rows the same number",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | list[dict[str, Any]], sentence: str
):
    with pytest.raises(UserError, match=sentence):
        rows_of(tmp_path, name, content)
