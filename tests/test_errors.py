"""A sentence stays one that can be read, whatever it quotes."""

import pickle

import pytest

from laconic.errors import LONGEST_SENTENCE, LONGEST_VALUE, UserError, must_be, quote, reason_of, truncate, unknown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("half", "'half'"),
        (0.5, "0.5"),
        (True, "True"),
        (None, "None"),
        ({"b": [1, "x"], "a": ()}, "{'b': [1, 'x'], 'a': ()}"),
        (10**30, "1000000000000000000000000000000"),
    ],
)
def test_what_is_short_is_quoted_whole(value: object, said: str) -> None:
    assert quote(value) == said
    assert str(must_be("keep", "in (0, 1]", value)) == f"keep must be in (0, 1]; got {said}."


@pytest.mark.parametrize("value", ["x" * 10**6, ["x" * 10**6] * 10**3, dict.fromkeys(range(10**5)), 10**4000])
def test_what_is_long_is_quoted_in_part(value: object) -> None:
    assert len(quote(value)) <= LONGEST_VALUE + 2
    assert "…" in quote(value) or "..." in quote(value)


def test_what_nests_is_quoted_in_part() -> None:
    nest: object = 1
    for _ in range(30):
        # Written out it has as many values as there are atoms in a cell.
        nest = [nest] * 20
    assert len(str(must_be("keep", "in (0, 1]", nest))) < 2 * LONGEST_VALUE


def test_every_sentence_keeps_its_beginning_and_its_remedy() -> None:
    said = str(UserError(f"The place {'x' * 10**5} is wrong; name another."))
    assert len(said) <= LONGEST_SENTENCE
    assert said.startswith("The place xxx") and said.endswith("xxx is wrong; name another.")
    assert truncate("abc", 3) == "abc"
    assert len(str(unknown("method", "x" * 10**6, ["svd", "gptq"]))) < 2 * LONGEST_VALUE
    assert str(pickle.loads(pickle.dumps(UserError("One.")))) == "One."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("No.\nMore.", "No"),
        (
            "One of: \n(1) a file, \n(2) a tokenizer or \n(3) a class. \nInstall it.",
            "One of: (1) a file, (2) a tokenizer or (3) a class",
        ),
        ("Validation error for field 'eps':\n    TypeError: Field 'eps' expected float", "Field 'eps' expected float"),
        (
            "Class validation error for validator 'validate_it':\n    ValueError: 7 is no multiple of 4.",
            "7 is no multiple of 4",
        ),
    ],
)
def test_the_reason_of_an_error_is_whole_and_no_longer(text: str, reason: str) -> None:
    assert reason_of(ValueError(text)) == reason
