"""YAML that says something twice, without end, or what cannot be, is one sentence with its line."""

import math
from pathlib import Path

import pytest

from laconic.allocate import read_plan
from laconic.errors import UserError
from laconic.recipe import read_recipe
from laconic.study import read_study
from laconic.yaml_loader import REPEATED, load, parse_value, parse_yaml, read_yaml

# Ten values in each of a few levels: a small nest, which stands for ten times as many values a level.
LEVELS = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 5)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep: 0.5\nseed: 1\nkeep: 0.3", "the key 'keep' was given in line 1 already (line 3, column 1)"),
        ("steps:\n- svd: {rank: 2, rank: 3}", "the key 'rank' was given in line 2 already (line 2, column 18)"),
        (LEVELS, f"its aliases expand to more than {REPEATED:,} values (line 4, "),
        ("a: &a [1, *a]", "a value contains itself (line 1, column 4)"),
        ("day: 2024-13-45", "month must be in 1..12 (line 1, column 6)"),
        (f"samples: {'9' * 5000}", "Exceeds the limit (4300 digits) for integer string conversion (line 1, column 10)"),
        (f"samples: {2**63}", "a whole number may have 63 bits (line 1, column 10)"),
        ('model: "a\\0b"', "no name holds the character '\\x00'; leave it out (line 1, column 8)"),
        ('- title: "\\ud800"', "no name holds the character '\\ud800'; leave it out (line 1, column 10)"),
        ("[" * 5000, "it nests too deep"),
        ("a: [", "expected the node content"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "The recipe 'r.yaml'")
    assert str(caught.value).startswith("The recipe 'r.yaml' is not YAML that laconic reads: ")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_yaml_allows_is_read_as_before() -> None:
    text = "base: &base {keep: 0.5, seed: 1}\nother: {<<: *base, keep: 0.3}\nlist: [*base, *base]\n"
    base = {"keep": 0.5, "seed": 1}
    assert load(text) == {"base": base, "other": {"keep": 0.3, "seed": 1}, "list": [base, base]}
    assert load("") is None and load("1: a\n'1': b") == {1: "a", "1": "b"}
    assert load(f"- {2**63 - 1}") == [2**63 - 1]


@pytest.mark.parametrize(("read", "what"), [(read_plan, "plan"), (read_recipe, "recipe"), (read_study, "study")])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes(range(256)), "cannot be read: it is not text (UTF-8, byte 128)"),
        (b"\x00\x01a: b", "is not YAML that laconic reads: "),
        (b"a: 1\na: 2\n", "the key 'a' was given in line 1 already"),
        (None, "cannot be read: there is no such file; give the path of a "),
    ],
)
def test_every_file_is_read_alike(read, what: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"The {what} '{path}' ") and said in str(caught.value)


def test_a_file_that_is_none_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.yaml_loader.LARGEST_FILE", 10)
    (tmp_path / "long.yaml").write_text("a: 12345678901")
    with pytest.raises(UserError, match="it is larger than 10 bytes"):
        read_yaml(tmp_path / "long.yaml", "plan")
    with pytest.raises(UserError, match="it is a folder"):
        read_yaml(tmp_path, "plan")
    with pytest.raises(UserError, match="embedded null"):
        read_yaml(Path("a\0b"), "plan")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\n")
    assert read_yaml(tmp_path / "marked.yaml", "plan") == {"a": "é"}


def test_a_value_is_quoted_as_it_was_written() -> None:
    for text in ("2:4", "2:4:8", "1:30.5", "010", "-0_7"):
        assert load(text) == text
    assert [load(text) for text in ("10", "-1_000", "0x1F", "0b11", "0", "1.5e+3", ".5", "-.inf")] == [
        10, -1000, 31, 3, 0, 1500.0, 0.5, -math.inf
    ]  # fmt: skip


def test_an_option_says_what_is_wrong_with_its_value() -> None:
    with pytest.raises(UserError, match=rf"^--x must be a YAML value \(.* may have 63 bits\); got '{2**63}'"):
        parse_value(str(2**63), "--x")
    with pytest.raises(UserError, match=r"^--x must be a YAML value; got '\['"):
        parse_value("[", "--x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bert-smal.yaml", "there is no such file; the nearest name there is '{}/bert-small.yml'."),
        ("bert-small", "there is no such file; the nearest name there is '{}/bert-small.yml'."),
        ("x.yaml", "there is no such file; give the path of a recipe in YAML."),
        ("none/x.yaml", "there is no folder '{}/none' either, so give the path of a YAML file."),
        ("bert-small.yml/x.yaml", "there is no folder '{}/bert-small.yml' either, so give the path of a YAML file."),
        (".", "it is a folder; give one of its files, like '{}/bert-small.yml'."),
        ("empty", "it is a folder; give a YAML file."),
    ],
)
def test_a_file_that_is_not_there_is_told_with_what_to_give(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bert-small.yml").write_text("a: 1")
    (tmp_path / "bert-small.txt").write_text("a: 1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / name, "recipe")
    assert str(caught.value).startswith(f"The recipe '{tmp_path / name}' cannot be read: ")
    assert str(caught.value).endswith(said.format(tmp_path))
