"""What a corpus is: rows of text, some of them with a second text, a label or a target."""

import random
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from laconic.errors import UserError, shortened

_HALF = re.compile("[\ud800-\udfff]")
"""JSON can spell one alone, and UTF-8 cannot."""
Label = float | str | tuple[float | str, ...]
"""A number or a name as the source has it, or several; `laconic.calibrate.labels` reads them for a model."""


@dataclass(frozen=True)
class Example:
    """One row. label: of a class, several of them, or a score on the scale that models are trained on (STS-B divided by
    5); None where the source says that it is hidden.

    also:  other targets that are as right as `target`.
    group: what the row is averaged with before groups are averaged, a relation or a phenomenon; names within names
           are parted by a slash.
    place: where it stands, for a sentence; empty where its number says it.
    """

    text: str
    pair: str | None = None
    label: Label | None = None
    target: str | None = None
    also: tuple[str, ...] = ()
    group: str = ""
    place: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        for text in filter(None, (self.text, self.pair, self.target)):
            if not text.isascii() and (odd := _HALF.search(text)):
                where = self.place or f"The row '{shortened(text[: odd.start()], 40)}…'"
                raise UserError(
                    f"{where} has half of a surrogate pair in its text, {odd[0]!a} at character {odd.start() + 1}, "
                    "which no tokenizer reads; mend the row."
                )

    @property
    def joined(self) -> str:
        """All of its text as one passage, for models that read a single one."""
        return " ".join(part for part in (self.text, self.pair, self.target) if part is not None)


@dataclass(frozen=True)
class Corpus:
    """The rows of one split of one source, in the source's order.

    classes: names of the classes in the order of their numbers in the labels; empty where the source does not say.
    """

    source: str
    split: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()

    def first(self, rows: int | None) -> "Corpus":
        """The first `rows` rows; all of them for None."""
        return replace(self, examples=self.examples[:rows])


class Rows(NamedTuple):
    """What a source has in one split: its rows, and the classes as it declares them, if it does."""

    examples: list[Example]
    classes: tuple[str, ...] = ()


def sample(corpus: Corpus, rows: int, seed: int) -> Corpus:
    """`rows` rows drawn without replacement, in random order; all of them when there are no more."""
    drawn = random.Random(seed).sample(range(len(corpus.examples)), min(rows, len(corpus.examples)))
    return replace(corpus, examples=tuple(corpus.examples[index] for index in drawn))
