"""A source that cannot be read is one sentence, with the file and line where there is one."""

from pathlib import Path

import pytest

from laconic.calibrate.sources import check_source, read
from laconic.errors import UserError
from tests.calibrate.files import write

pytestmark = pytest.mark.usefixtures("no_data_folder")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", " \n\n", "has no rows of text"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", '{"body": "x"}', r"a\.jsonl:1 has no field that laconic reads as text \(fields: 'body'\)"),
        ("a.jsonl", '{"text": " "}\n{"text": "\\t"}\n', "has no rows of text"),
        ("a.jsonl", '{"text": 3}', r"a\.jsonl:1: the field 'text' must be text; got 3"),
        ("a.jsonl", '{"text": null}', "the field 'text' must be text; got null"),
        ("a.jsonl", '{"source": "x", "target": [true]}', r"the field 'target' must be text; got \[true\]"),
        ("a.jsonl", '{"text": "x", "text": "y"}', r"a\.jsonl:1 has the field 'text' twice; leave one out"),
        ("a.json", '[{"text": "x", "label": 0, "label": 1}]', r"a\.json has the field 'label' twice"),
        ("a.jsonl", "7", r"a\.jsonl:1 must be text or an object of named fields; got 7"),
        ("a.json", " \n", "The train split of .* has no rows of text; give a source that has some"),
        ("a.json", '[{"text": "x"},\n {"text":]', r"a\.json is not JSON: .* at line 2, column 10; correct it"),
        (
            "a.jsonl",
            '{"tokens": "EU x", "ner_tags": ["O"]}',
            "the field 'tokens' must be a list of words; got 'EU x'",
        ),
        ("a.jsonl", '{"words": 3}', r"a\.jsonl:1: the field 'words' must be a list of words; got 3"),
        ("a.conll", "EU B-PER\nNew\tYork O\n", r"1 has 1 column \(columns are separated by tabs, as line 2 has one\);"),
        (
            "a.conll",
            "EU\tO\nNew O\n",
            r"2 has 1 column \(columns are separated by tabs, as line 1 has one\), and",
        ),
        (
            "a.jsonl",
            '{"question": "q", "context": "In Oslo.", "answers": [{"text": "Oslo", "answer_start": "3"}]}',
            r"1: the field 'answer_start' must be a whole number, .*; got '3'",
        ),
        ("a.json", '{"text": "x"}', r'must be a list of texts or of objects; got {"text": "x"}'),
        ("a.tsv", "text\tlabel\tlabel\nx\t0\t1\n", r"The header of .*a\.tsv has the field 'label' twice"),
        ("a.csv", "text,text\nx,y\n", r"The header of .*a\.csv has the field 'text' twice"),
        ("a.csv", 'text,label\n"x\ny",0\nz\n', r"a\.csv:4 has 1 columns, its header 2"),
        ("a.csv", 'text\n"x" y\n', r"a\.csv:2 is not CSV: .*; fix the row, or write the data as \.jsonl"),
        ("a.csv", "text;label\nx;0\n", r"a\.csv:2 has no field that laconic reads as text \(fields: 'text;label'\)"),
        ("a.tsv", "text\tlabel\nx\n", r"a\.tsv:2 has 1 columns, its header 2"),
        ("RTE/dev.tsv", "sentence1\tlabel\na\tb\n", "has no column 'sentence2'"),
        ("CoLA/dev.tsv", "gj04\t1\t\tx\ngj04\t1\n", r"dev\.tsv:2 has 2 columns, CoLA 4"),
        ("a.xls", "x", "has no known format; its name must end in .txt"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        read(write(tmp_path / name, content))


def test_a_file_that_is_not_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 3\)"):
        read(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.txt", "There is no data 'nowhere.txt' in the working folder"),
        ("builtin:pydocs", "did you mean 'builtin:pydoc'"),
        ("glue/sst3", "There is no GLUE task 'sst3': did you mean 'sst2'"),
        ("", "There is no data ''"),
        ("./no/such", "There is no data './no/such'"),
    ],
)
def test_an_unknown_source_is_refused_before_anything_is_read(source: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_source(source, "train")


def test_a_near_name_in_the_data_folder_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "tinystories" / "a.txt", "x")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'tinystories'"):
        check_source("tinystory", "train")


def test_a_missing_split_names_what_is_there(tmp_path: Path):
    write(tmp_path / "dev.txt", "x")
    with pytest.raises(UserError, match=r"has no train split \(found: dev\.txt\)"):
        check_source(str(tmp_path), "train")
    with pytest.raises(UserError, match="split must be one of train, dev; got 'test'"):
        check_source(str(tmp_path), "test")


@pytest.mark.parametrize("source", ["someone/something", "someone/something:part"])
def test_the_hub_out_of_reach_is_one_sentence(source: str):
    with pytest.raises(UserError, match=r"'someone/something' is no local file and cannot be loaded from the hub"):
        check_source(source, "train")


def test_glue_out_of_reach_names_the_file_that_would_do():
    with pytest.raises(UserError, match=r"There is no LACONIC_DATA/glue/QNLI/train\.tsv"):
        check_source("glue/qnli", "train")
