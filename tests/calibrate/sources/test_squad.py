"""Questions are read from SQuAD's files and from rows, and a wrong one is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from laconic.calibrate.corpus import Answer
from laconic.errors import UserError
from tests.calibrate.files import rows_of

pytestmark = pytest.mark.usefixtures("no_data_folder")

CONTEXT = "Ada Lovelace was born in London. London is a city."


def squad(*questions: dict[str, Any], indent: int | None = 1, context: str = CONTEXT) -> str:
    paragraph = {"context": context, "qas": [{"id": f"q{at}", **row} for at, row in enumerate(questions)]}
    return json.dumps({"version": "v2.0", "data": [{"title": "Ada", "paragraphs": [paragraph]}]}, indent=indent)


def answer(text: str, start: int) -> dict[str, Any]:
    return {"question": "Where?", "answers": [{"text": text, "answer_start": start}]}


def test_questions_of_a_squad_file(tmp_path: Path):
    rows = [answer("London", 25), {"question": " When? ", "answers": [], "is_impossible": True}]
    examples = rows_of(tmp_path, "a.json", squad(*rows))
    assert [row.text for row in examples] == ["Where?", "When?"]
    assert {row.pair for row in examples} == {CONTEXT}
    assert [row.answers for row in examples] == [(Answer("London", 25),), ()]
    lines = squad(*rows).split("\n")
    assert [lines[int(row.place.split(":")[1].split()[0]) - 1].strip() for row in examples] == [
        '"id": "q0",',
        '"id": "q1",',
    ]


def test_questions_as_rows(tmp_path: Path):
    row = {"question": "Where?", "context": CONTEXT}
    rows = [
        {**row, "answers": {"text": ["London", "London"], "answer_start": [25, 33]}},
        {**row, "answers": ["London"]},
        {**row, "answers": {"text": [], "answer_start": []}},
        row,
    ]
    found = [example.answers for example in rows_of(tmp_path, "a.jsonl", rows)]
    assert found == [(Answer("London", 25), Answer("London", 33)), (Answer("London", 25),), (), None]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", squad(answer("Rome", 3)), r"a\.json:\d+ \(question q0\) has the answer 'Rome', which is not in its"),
        ("a.json", squad(answer("London", 24)), r"'London' at character 24 of its context, where it has ' Londo'; fix"),
        (
            "a.json",
            squad(answer("London", -1)),
            r"'answer_start' must be a whole number, .*; got -1",
        ),
        ("a.json", squad({"answers": []}), r"\(question q0\) has no 'question'; add it"),
        ("a.json", squad({"question": 3}), r"\(question q0\): the field 'question' must be text; got 3"),
        ("a.json", squad({"question": "a", "answers": "b"}), r"'answers' must be a list of texts"),
        ("a.json", squad({"question": "a", "answers": [{"text": ""}]}), r"an answer must be text, or an object with"),
        ("a.json", '{"data": [{"paragraphs": 3}]}', r"a\.json: data\[0\]: the field 'paragraphs' must be a list"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "a"}]}]}', r"data\[0\]\.paragraphs\[0\]: the field 'qas'"),
        ("a.json", '{"data": []}', "has no rows of text"),
        ("a.jsonl", [{"question": "a", "context": "b", "answers": ["c"]}], r":1 has the answer 'c', which is not in"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | list[dict[str, Any]], sentence: str
):
    with pytest.raises(UserError, match=sentence):
        rows_of(tmp_path, name, content)


def test_the_line_of_a_question_in_a_file_of_one_line(tmp_path: Path):
    rows = (answer("London", 25), answer("Rome", 3))
    with pytest.raises(UserError, match=r"a\.json:1 \(question q1\) has the answer 'Rome'"):
        rows_of(tmp_path, "a.json", squad(*rows, indent=None))
