"""Local files become the rows that the hub has; a malformed one is told with its line."""

import json
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.evaluate.harness.local import LOCAL_DATA, find_local_data
from tests.evaluate.harness.conftest import hub

BOOLQ, PIQA, WINOGRANDE = LOCAL_DATA


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("dataset", LOCAL_DATA, ids=str)
def test_rows_are_those_of_the_hub(dataset: tuple[str, str | None]):
    local = find_local_data(*dataset)
    assert local is not None and local.rows() == hub(dataset[0])["validation"].to_list()


def test_boolq_as_superglue_has_it(data: Path):
    rows = hub("aps/super_glue")["validation"].to_list()
    file = data / "boolq" / "dev.jsonl"
    file.write_text("".join(json.dumps({**row, "label": bool(row["label"])}) + "\n" for row in rows))
    local = find_local_data(*BOOLQ)
    assert local is not None and local.rows() == rows


def test_half_a_data_set_is_none(data: Path):
    (data / "piqa" / "dev-labels.lst").unlink()
    assert find_local_data(*PIQA) is None
    assert find_local_data("aps/super_glue", "copa") is None


@pytest.mark.parametrize(
    ("dataset", "file", "text", "sentence"),
    [
        (BOOLQ, "dev.jsonl", "", "has no rows"),
        (BOOLQ, "dev.jsonl", "{", r"dev\.jsonl:1 is not JSON: .* at column 2"),
        (BOOLQ, "dev.jsonl", "\n[1]", r"dev\.jsonl:2 must be an object of named fields; got \[1\]"),
        (BOOLQ, "dev.jsonl", '{"passage": "a"}', r"'question' of .*dev\.jsonl:1 must be text; got None"),
        (BOOLQ, "dev.jsonl", '{"passage": "a", "question": "b", "answer": true}', "'title' of .* must be text"),
        (
            BOOLQ,
            "dev.jsonl",
            '{"passage": "a", "question": "b", "title": "c", "answer": "yes"}',
            r"The answer of .*dev\.jsonl:1 must be true or false; got 'yes'",
        ),
        (PIQA, "dev-labels.lst", "0\n1\n", r"dev-labels\.lst has 2 labels, and dev\.jsonl 4 rows"),
        (PIQA, "dev-labels.lst", "0\n1\n2\n0\n", r"dev-labels\.lst:3 must be 0 or 1; got '2'"),
        (
            WINOGRANDE,
            "dev.jsonl",
            '{"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}',
            "must be one with a gap _; got 'a'",
        ),
        (
            WINOGRANDE,
            "dev.jsonl",
            '{"sentence": "_", "option1": "b", "option2": "c", "answer": ""}',
            r"The answer of .*dev\.jsonl:1 must be 1 or 2; got ''",
        ),
    ],
)
def test_a_malformed_row_is_named(
    data: Path, dataset: tuple[str, str | None], file: str, text: str, sentence: str
) -> None:
    (data / LOCAL_DATA[dataset].folder / file).write_text(text)
    local = find_local_data(*dataset)
    assert local is not None
    with pytest.raises(UserError, match=sentence):
        local.rows()
