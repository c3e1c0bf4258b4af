"""Both layouts of LAMA give the same kind of rows, and what is wrong with a file is said with its line."""

import json
from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.evaluate import check_task
from laconic.evaluate.lama import Lama
from laconic.evaluate.lama.facts import corpus_readers

Row = dict[str, object]


def write(path: Path, *rows: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def triple(subject: str, answer: str, **more: object) -> Row:
    return {"sub_label": subject, "obj_label": answer, **more}


@pytest.fixture
def lama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of LAMA."""
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    (tmp_path / "lama").mkdir()
    return tmp_path / "lama"


@pytest.fixture(params=["", "data"])
def release(lama: Path, request: pytest.FixtureRequest) -> Path:
    """The original layout, with or without its folder `data`."""
    folder = lama / request.param
    write(
        folder / "relations.jsonl",
        {"relation": "P36", "template": "The capital of [X] is [Y] .", "type": "1-1"},
        {"relation": "P1412", "template": "[X] speaks [Y] ."},
        {"relation": "P999", "template": "[X] has no file [Y] ."},
    )
    write(folder / "TREx/P36.jsonl", triple("France", "Paris"), triple("Italy", "Rome"), triple("Italy", "Rome"))
    write(folder / "TREx/P1412.jsonl", triple("Dante [Y]", "Latin"), triple("Dante [Y]", "Italian"))
    votes = [{"judgment": "yes"}, {"judgment": "no"}]
    write(
        folder / "Google_RE/place_of_birth_test.jsonl",
        triple("Ann", "Oslo", judgments=votes),
        triple("Bob", "Rome", judgments=[*votes, {"judgment": "no"}]),
    )
    write(folder / "Google_RE/date_of_birth_test.jsonl", triple("Ann", "1902", judgments=[]))
    write(folder / "Squad/test.jsonl", triple("Squad", "gold", masked_sentences=["The [MASK] colour."]))
    write(
        folder / "ConceptNet/test.jsonl",
        triple("bird", "fly", pred="CapableOf", masked_sentences=["Birds can [MASK]."]),
        triple("bird", "sing", pred="CapableOf", masked_sentences=["A bird may [MASK]."]),
        triple("bird", "nest", pred="HasA", masked_sentences=["A bird has a [MASK]."]),
    )
    return folder


def rows_of(name: str | None, limit: int | None = None) -> list[tuple[str, str, str, tuple[str, ...]]]:
    corpus = Lama(name).load_corpus(limit)
    return [(row.group, row.text, row.target or "", row.other_targets) for row in corpus.examples]


def test_the_release_is_asked_as_in_the_paper(release: Path):
    assert rows_of("trex") == [
        ("trex/P36", "The capital of France is [MASK] .", "Paris", ()),
        ("trex/P36", "The capital of Italy is [MASK] .", "Rome", ()),
        ("trex/P1412", "Dante [Y] speaks [MASK] .", "Latin", ("Italian",)),
        ("trex/P1412", "Dante [Y] speaks [MASK] .", "Italian", ("Latin",)),
    ]
    # Bob was refuted by two of three.
    assert rows_of("google_re") == [
        ("google_re/place_of_birth", "Ann was born in [MASK] .", "Oslo", ()),
        ("google_re/date_of_birth", "Ann (born [MASK]).", "1902", ()),
    ]
    assert rows_of("squad") == [("squad/all", "The [MASK] colour.", "gold", ())]
    assert rows_of("conceptnet") == [
        ("conceptnet/all", "Birds can [MASK].", "fly", ("sing",)),
        ("conceptnet/all", "A bird may [MASK].", "sing", ("fly",)),
        ("conceptnet/all", "A bird has a [MASK].", "nest", ()),
    ]
    assert len(rows_of(None)) == 10


def test_the_words_that_compete_are_those_of_every_corpus(release: Path):
    answers = ("Paris", "Rome", "Latin", "Italian", "Oslo", "1902", "gold", "fly", "sing", "nest")
    assert Lama("squad").load_corpus(None).classes == Lama(None).load_corpus(3).classes == answers
    assert Lama("squad", "all").load_corpus(None).classes == ()
    (release / "words.txt").write_text("gold\n\nsilver\ngold\n")
    assert Lama("squad", str(release / "words.txt")).load_corpus(None).classes == ("gold", "silver")


def test_a_limit_is_spread_over_the_relations(release: Path):
    assert [row[0] for row in rows_of(None, 6)] == [
        "trex/P36", "trex/P1412", "google_re/place_of_birth", "google_re/date_of_birth", "squad/all", "conceptnet/all",
    ]  # fmt: skip


def test_lines_with_sentences_of_their_own(lama: Path):
    sentence = {"masked_sentence": "It is [MASK]."}
    write(
        lama / "some.jsonl",
        {"source": "TREx", "relation": "P36", "sub": "France", "obj": "Paris", **sentence},
        {"source": "TREx", "relation": "P36", "sub": "France", "obj": "Lutetia", **sentence},
        {"source": "Google_RE", "relation": "/people/person/place_of_birth", "sub": "Ann", "obj": "Oslo", **sentence},
        {"source": "Google_RE", "relation": "/x/place_of_birth", "sub": "Bob", "obj": "Rome", "masked_sentence": None},
        {"source": "Squad", "relation": None, "sub": None, "obj": "gold", **sentence},
        {"source": "Squad", "relation": None, "sub": None, "obj": "blue", **sentence},
    )
    assert rows_of("trex")[0] == ("trex/P36", "It is [MASK].", "Paris", ("Lutetia",))
    assert [row[:2] for row in rows_of("google_re")] == [
        ("google_re/place_of_birth", "It is [MASK]."),
        ("google_re/place_of_birth", ""),
    ]
    # Without a subject no other answer is known to be right.
    assert [row[3] for row in rows_of("squad")] == [(), ()]
    assert Lama("trex").texts(Lama("trex").load_corpus(None)).examples[0].text == "It is Paris."
    assert len(Lama(None).texts(Lama(None).load_corpus(None)).examples) == 5
    with pytest.raises(UserError, match=r"There is no ConceptNet in .* it has lama/trex, lama/google_re, lama/squad"):
        check_task("lama/conceptnet")


def test_the_release_comes_before_lines(release: Path, tmp_path: Path):
    write(tmp_path / "lama/a.jsonl", {"source": "Squad", "relation": None, "sub": None, "obj": "x",
                                      "masked_sentence": "[MASK]"})  # fmt: skip
    assert rows_of("squad")[0][2] == "gold"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"source": "TREx", "masked_sentence": "[MASK]"}, r"some\.jsonl:1 has no field 'obj' \(fields: 'source', "),
        ({"source": "TREx", "obj": ""}, r"some\.jsonl:1 must have text in the field 'obj'; got ''"),
        ({"source": "Trexx", "obj": "x"}, r"some\.jsonl:1 is of no corpus of LAMA 'Trexx': did you mean 'TREx'"),
        ([], r"some\.jsonl:1 must be an object of named fields; got \["),
    ],
)
def test_a_malformed_line_is_named(lama: Path, row: Row, sentence: str):
    write(lama / "some.jsonl", row)
    with pytest.raises(UserError, match=sentence):
        check_task("lama")
    (lama / "some.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"some\.jsonl:1 is not JSON"):
        check_task("lama")


def test_what_is_missing_is_named_before_a_model_is_needed(lama: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"has neither a corpus of LAMA's release \(TREx, .*nor a \.jsonl of facts"):
        check_task("lama")
    write(lama / "Squad/test.jsonl", triple("Squad", "gold", masked_sentences=["[MASK]"]))
    with pytest.raises(UserError, match=r"There is no vocabulary 'nowhere\.txt' here or in LACONIC_DATA"):
        check_task("lama:nowhere.txt")
    with pytest.raises(UserError, match="There is no task 'lama/trexx': did you mean 'lama/trex'"):
        check_task("lama/trexx:all")
    (lama / "TREx").mkdir()
    with pytest.raises(UserError, match=r"relations\.jsonl', which is missing"):
        corpus_readers()["trex"]()
    write(lama / "relations.jsonl", {"relation": "P36", "template": "[X] is ."})
    write(lama / "TREx/P36.jsonl", triple("France", "Paris"))
    with pytest.raises(UserError, match=r"relations\.jsonl:1 has the template '\[X\] is \.'; it must have \[X\] and"):
        corpus_readers()["trex"]()
    (lama / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="has no words"):
        Lama.from_name("lama/squad:empty.txt").load_corpus(None)
    monkeypatch.delenv("LACONIC_DATA")
    with pytest.raises(UserError, match="LAMA is read from local files, and LACONIC_DATA is not set"):
        check_task("lama/squad")


def test_names_of_tasks():
    names = ("lama", "lama/trex", "lama/Google-RE", "lama:all", "lama/squad:words.txt")
    tasks = [Lama.from_name(name) for name in names]
    assert [task.name for task in tasks] == ["lama", "lama/trex", "lama/google_re", "lama:all", "lama/squad:words.txt"]
    assert [task.vocabulary for task in tasks] == ["answers", "answers", "answers", "all", "words.txt"]
