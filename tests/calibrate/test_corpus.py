"""Every kind of source gives the rows that it should, and every mistake its sentence."""

import json
import re
from pathlib import Path

import datasets
import pytest

from laconic.calibrate.corpus import Example, sample
from laconic.calibrate.sources import read
from laconic.calibrate.sources.hub import hub_examples
from laconic.errors import UserError
from tests.calibrate.files import write

pytestmark = pytest.mark.usefixtures("no_data_folder")


def texts(source: str, split: str = "train") -> list[str]:
    return [example.text for example in read(source, split).examples]


def test_pydoc_is_english_prose_and_its_splits_are_disjoint():
    train, dev = texts("builtin:pydoc"), texts("builtin:pydoc", "dev")
    assert len(train) > 500 and len(dev) > 100
    assert not set(train) & set(dev)
    assert len(set(train)) == len(train)
    assert all(len(text) >= 40 and "\n" not in text and ">>>" not in text for text in train + dev)
    assert train == texts("builtin:pydoc")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\ntwo\n\nthree\n", [Example("one\ntwo"), Example("three")]),
        ("a.txt", "one\r\ntwo\r\n", [Example("one"), Example("two")]),
        ("a.jsonl", '{"text": "x"}\n\n{"sentence": "y", "label": 1}\n', [Example("x"), Example("y", label=1.0)]),
        ("a.jsonl", '{"source": "x", "target": "y"}', [Example("x", target="y")]),
        (
            "a.jsonl",
            '{"premise": "x", "hypothesis": "y", "label": "contradiction"}',
            [Example("x", "y", label="contradiction")],
        ),
        ("a.jsonl", '{"question": "x", "passage": "y", "answer": true}', [Example("x", "y", label="true")]),
        ("a.json", '["x", {"content": "y"}]', [Example("x"), Example("y")]),
        ("a.tsv", 'label\ttext\n0\tx "y\n', [Example('x "y', label=0.0)]),
        (
            "a.csv",
            'text,label\r\n"x, ""y""\nz",1\r\n\r\nw,0\r\n',
            [Example('x, "y"\nz', label=1.0), Example("w", label=0.0)],
        ),
        ("a.tokens", " \n = One = \n \n x \n = = Part = = \n y \n = Two = \n z \n", None),
    ],
)
def test_file_formats(tmp_path: Path, name: str, content: str, expected: list[Example] | None):
    rows = read(write(tmp_path / name, content)).examples
    if expected is None:
        assert [row.text.split("\n")[0].strip() for row in rows] == ["= One =", "= Two ="]
    else:
        assert list(rows) == expected


def test_a_folder_is_read_by_split_and_a_lone_file_serves_both(tmp_path: Path):
    write(tmp_path / "two" / "train.txt", "t")
    write(tmp_path / "two" / "wiki.valid.txt", "v")
    write(tmp_path / "two" / "test.txt", "x")
    write(tmp_path / "one" / "stories_1000.txt", "s")
    assert texts(str(tmp_path / "two")) == ["t"] and texts(str(tmp_path / "two"), "dev") == ["v"]
    assert texts(str(tmp_path / "one")) == texts(str(tmp_path / "one"), "dev") == ["s"]


GLUE_FILES = {
    "CoLA/dev.tsv": "gj04\t1\t\tHe left.\ngj04\t0\t*\tHe leave.\n",
    "MRPC/dev.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "a\tb\n',
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tq\ts\tnot_entailment\n",
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\n4\tbroken\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
    "SST-2/dev.tsv": "sentence\tlabel\nfine \t1\r\n",
    "STS-B/dev.tsv": "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.500\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
    "MNLI/dev_matched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
    "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\tc\td\tcontradiction\n",
}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", [Example("He left.", label=1.0), Example("He leave.", label=0.0)]),
        ("MRPC", [Example('He said "a', "b", label=1.0)]),
        ("qnli", [Example("q", "s", label=1.0)]),
        ("qqp", [Example("a", "b", label=1.0)]),
        ("rte", [Example("a", "b", label=0.0)]),
        ("SST-2", [Example("fine", label=1.0)]),
        ("sts-b", [Example("a", "b", label=0.7)]),
        ("stsb", [Example("a", "b", label=0.7)]),
        ("wnli", [Example("a", "b", label=0.0)]),
        ("mnli", [Example("a", "b", label=1.0)]),
        ("mnli-mm", [Example("c", "d", label=2.0)]),
    ],
)
def test_glue_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, expected: list[Example]):
    for name, content in GLUE_FILES.items():
        write(tmp_path / "glue" / name, content)
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    assert list(read(f"glue/{task}", "dev").examples) == expected


GLUE_TESTS = {
    "CoLA/test.tsv": "index\tsentence\n0\tHe left.\n",
    "MRPC/test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n",
    "QNLI/test.tsv": "index\tquestion\tsentence\n0\tq\ts\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\ta\tb\n",
    "SST-2/test.tsv": "index\tsentence\n0\tfine\n",
    "STS-B/test.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n",
}


@pytest.mark.parametrize(
    ("content", "place"),
    [('{"text": "cat"}\n{"text": "a \\ud800 cat"}', "a.jsonl:2 has"), ('["cat", "a \\udc00"]', "a.json[1] has")],
)
def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path, content: str, place: str):
    """JSON can spell one; no tokenizer reads it."""
    path = write(tmp_path / place.partition(":")[0].partition("[")[0], content)
    with pytest.raises(UserError, match=re.escape(place) + ".* surrogate pair in its text, .* at character 3, .*fix"):
        read(path)
    with pytest.raises(UserError, match=r"The row 'a …' has half"):
        Example("a \ud800")
    assert Example("\U0001f408").text == "🐈"


@pytest.mark.parametrize("name", GLUE_TESTS)
def test_the_test_files_of_glue_are_texts_without_labels(tmp_path: Path, name: str):
    """Their columns are other than those of the training files, which of CoLA have no header."""
    [row] = read(write(tmp_path / name, GLUE_TESTS[name])).examples
    assert row.label is None and row.text in ("He left.", "a", "q", "fine") and row.pair in (None, "b", "s")


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("a.jsonl", '{"text": "x", "label": NaN}\n{"text": "x", "label": "good"}', ["nan", "good"]),
        ("a.jsonl", '{"text": "x", "answer": "Paris"}\n{"text": "x", "answer": {"a": 1}}', ["Paris", "{'a': 1}"]),
        ("a.jsonl", '{"text": "x", "label": null, "answer": "y"}\n{"text": "x", "label": -1}', [None, -1.0]),
        ("a.jsonl", '{"text": "x", "labels": [1, "2", "a", true, null]}', [(1.0, 2.0, "a", 1.0, "")]),
        ("a.jsonl", f'{{"text": "x", "label": {10**400}}}', [str(10**400)]),
        ("a.tsv", "label\ttext\n\tx\n 1 \tx\n1_0\tx\n1e400\tx\n", [None, 1.0, "1_0", "1e400"]),
        ("STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\tinf\na\tb\t-1\n", ["inf", None]),
        ("SST-2/dev.tsv", "sentence\tlabel\na\tx\na\t-1\na\tPositive\n", ["x", None, 1.0]),
        ("WNLI/dev.tsv", "sentence1\tsentence2\tlabel\na\tb\tentailment\n", [1.0]),
    ],
)
def test_labels_are_kept_as_they_stand_for_those_who_need_them(tmp_path: Path, name: str, content: str, labels):
    rows = read(write(tmp_path / name, content)).examples
    assert [row.label for row in rows] == labels
    assert rows[0].place.startswith(str(tmp_path / name))


def hub_folder(folder: Path, features: datasets.Features, rows: dict) -> None:
    """A data set as one lies on the hub, in the working folder."""
    (folder / "owner" / "name").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "owner" / "name" / "train.parquet")


def test_the_classes_of_a_hub_data_set_are_those_that_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    kind = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    hub_folder(tmp_path, features, {"text": ["a", "b"], "label": [1, -1]})
    examples, classes = hub_examples("owner/name", "train")()
    assert classes == ("neg", "pos")
    assert [(row.label, row.place) for row in examples] == [(1.0, "owner/name[0]"), (-1.0, "owner/name[1]")]


def test_several_labels_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    kinds = datasets.List(datasets.ClassLabel(names=["joy", "anger"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": kinds})
    hub_folder(tmp_path, features, {"text": ["a"], "labels": [[0, 1]]})
    examples, classes = hub_examples("owner/name", "train")()
    assert classes == ("joy", "anger") and examples[0].label == (0.0, 1.0)


def test_a_folder_with_a_glue_name_is_read_in_its_layout(tmp_path: Path):
    write(tmp_path / "STS-B" / "dev.tsv", GLUE_FILES["STS-B/dev.tsv"])
    assert read(str(tmp_path / "STS-B"), "dev").examples[0].label == pytest.approx(0.7)


def test_the_classes_of_glue_are_known_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = "index\tsentence1\tsentence2\tlabel\n0\tx\ty\tnot_entailment\n"
    file = write(tmp_path / "glue" / "RTE" / "train.tsv", rows)
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    for source in ("glue/rte", file, str(tmp_path / "glue" / "RTE")):
        assert read(source).classes == ("entailment", "not_entailment"), source
    assert read(write(tmp_path / "a.txt", "x")).classes == ()


def test_names_are_looked_up_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "tales" / "tales.txt", "x")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    assert texts("tales") == texts("tales/tales.txt") == ["x"]


def test_a_sample_is_seeded_without_replacement_and_never_larger():
    corpus = read("builtin:pydoc")
    drawn = sample(corpus, 50, seed=1)
    assert drawn == sample(corpus, 50, seed=1) != sample(corpus, 50, seed=2)
    assert len(set(drawn.examples)) == 50
    assert set(sample(corpus, 10**6, seed=0).examples) == set(corpus.examples)


def test_real_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    rows = {name: len(read(name, "dev").examples) for name in ("glue/sst2", "glue/CoLA", "glue/mrpc", "glue/stsb")}
    assert rows == {"glue/sst2": 872, "glue/CoLA": 1043, "glue/mrpc": 408, "glue/stsb": 1500}
    labels = [example.label for example in read("glue/stsb", "dev").examples]
    assert min(label for label in labels if label is not None) == 0.0 and max(filter(None, labels)) == 1.0
    assert read("g2p").examples[0] == Example("epexegesis", target="ɛpˌɛksəʤˈisɪs")
    assert len(read("wikitext-2", "dev").examples) == 60
    first = json.loads((shared_data / "tinystories" / "tinystories_1000.json").read_text())[0]
    assert read("tinystories", "dev").examples[0].text == first
