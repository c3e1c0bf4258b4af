"""Sentences whose words have classes are read, and a wrong line is named."""

from pathlib import Path
from typing import Any

import pytest

from laconic.errors import UserError
from tests.calibrate.files import rows_of

pytestmark = pytest.mark.usefixtures("no_data_folder")

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# sent_id = 2
# NN O O
Oslo NNP B-NP B-LOC
"""


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("ending", ["conll", "bio", "iob", "iob2"])
def test_sentences_in_columns(tmp_path: Path, ending: str, separator: str):
    examples = rows_of(tmp_path, f"a.{ending}", CONLL.replace(" ", separator))
    assert [row.words for row in examples] == [("EU", "rejects"), ("#", "Oslo")]
    assert [row.label for row in examples] == [("B-ORG", "O"), ("O", "B-LOC")]
    assert examples[0].text == "EU rejects"
    assert [row.place.rpartition(":")[2] for row in examples] == ["3", "7"]


@pytest.mark.parametrize("words", ["tokens", "words"])
@pytest.mark.parametrize("tags", ["ner_tags", "tags", "pos_tags", "labels"])
def test_sentences_as_lists(tmp_path: Path, words: str, tags: str):
    rows = [{words: ["in", "Oslo"], tags: ["O", "B-LOC"]}, {words: ["in"], tags: [0]}, {words: ["by"]}]
    examples = rows_of(tmp_path, "a.jsonl", rows)
    assert [row.label for row in examples] == [("O", "B-LOC"), (0.0,), None]
    assert examples[0].words == ("in", "Oslo")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.conll", "EU NNP B-NP B-ORG\nrejects\n", r"a\.conll:2 has 1 column, and line 1 has 4; give each word the"),
        ("a.conll", "EU\nrejects\n", r"a\.conll:1 has 1 column; a line must have a word in the first column"),
        ("a.conll", "EU\tB-ORG\nrejects\t\n", r"a\.conll:2 has no class; fix the line"),
        ("a.conll", "\n-DOCSTART- -X- O\n\n", "has no rows of text"),
        ("a.jsonl", [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}], r":2 has 2 words in"),
        ("a.jsonl", [{"tokens": ["a", 3], "tags": ["O", "O"]}], r":1: the field 'tokens' must be a list of words"),
        ("a.jsonl", [{"tokens": ["a", " "], "tags": ["O", "O"]}], r":1 has ' ' as word 2"),
        ("a.jsonl", [{"tokens": ["a"], "tags": "O"}], r"'tags' must be a list with the class of each word; got 'O'"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | list[dict[str, Any]], sentence: str
):
    with pytest.raises(UserError, match=sentence):
        rows_of(tmp_path, name, content)
