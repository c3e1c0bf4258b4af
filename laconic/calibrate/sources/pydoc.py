"""`builtin:pydoc`: the English prose of Python's own reference, from `pydoc_data.topics`, which ships with CPython.

Every fifth topic in alphabetical order is the dev split. Topics quote each other, so a paragraph of the dev split is
taken out of the training split.
"""

import re
from pydoc_data.topics import topics

from laconic.calibrate.examples import Example

DEV_EVERY = 5
MIN_CHARACTERS = 40
MIN_PROSE = 0.85

_CODE = re.compile(r"::=|>>>|^\s*\*{3,}|={3,}|-{3,}", re.MULTILINE)
_BULLET = re.compile(r"^(\*|\d+\.)\s+")
_EMPHASIS = re.compile(r"\*{1,2}([^*\s][^*]*)\*{1,2}")


def pydoc(split: str) -> list[Example]:
    """The paragraphs of one split, each once, in the order of the topics."""
    held_out = [name for index, name in enumerate(sorted(topics)) if index % DEV_EVERY == 0]
    dev = _paragraphs(held_out)
    if split == "dev":
        return [Example(text) for text in dev]
    train = _paragraphs([name for name in sorted(topics) if name not in held_out])
    return [Example(text) for text in train if text not in dev]


def _paragraphs(names: list[str]) -> dict[str, None]:
    """The prose paragraphs of these topics; a dictionary, because it is an ordered set."""
    blocks = (block for name in names for block in re.split(r"\n\s*\n", topics[name]))
    return {text: None for block in blocks if not _CODE.search(block) and _is_prose(text := _clean(block))}


def _clean(block: str) -> str:
    """One line without list markers and emphasis."""
    return _EMPHASIS.sub(r"\1", _BULLET.sub("", " ".join(block.split())))


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= MIN_CHARACTERS and letters >= MIN_PROSE * len(text)
