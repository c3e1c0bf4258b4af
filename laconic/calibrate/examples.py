"""The rows of a corpus: texts, some with a second text, a label or a target."""

import random
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from laconic.errors import UserError, truncate

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which is possible as a JSON escape but cannot be encoded in UTF-8."""
Label = float | str | tuple[float | str, ...]
"""A number or a name as the source has it, or several; `laconic.calibrate.labels` converts them for a model."""


@dataclass(frozen=True)
class Example:
    """One row of a corpus.

    Args:
        text: the text.
        pair: the second text of a pair; None for a single text.
        label: a class, several classes, or a score on the scale that models are trained on (STS-B divided by 5); None
            if there is no label.
        target: the text to generate, for sequence-to-sequence models.
        also: other correct targets.
        group: group of rows whose scores are averaged first, before the mean over groups, such as a relation or a
            linguistic phenomenon; nested groups are separated by slashes.
        place: file and line of the row, for error messages; if empty, its number in the corpus is used.

    Raises:
        UserError: a text has half of a surrogate pair.

    Example:
        >>> Example("A man eats.", pair="Someone eats.").joined
        'A man eats. Someone eats.'
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
                where = self.place or f"The row '{truncate(text[: odd.start()], 40)}…'"
                raise UserError(
                    f"{where} has half of a surrogate pair in its text, {odd[0]!a} at character {odd.start() + 1}, "
                    "which no tokenizer reads; mend the row."
                )

    @property
    def joined(self) -> str:
        """The text, the pair and the target joined by spaces, for models that read a single text."""
        return " ".join(part for part in (self.text, self.pair, self.target) if part is not None)


@dataclass(frozen=True)
class Corpus:
    """The rows of one split of one source, in order.

    Args:
        source: name of the source.
        split: `train` or `dev`.
        examples: the rows.
        classes: names of the classes in the order of their numbers; empty if the source does not declare them.

    Example:
        >>> corpus = Corpus("mine", "train", (Example("a"), Example("b")))
        >>> len(corpus.first(1).examples)
        1
    """

    source: str
    split: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()

    def first(self, rows: int | None) -> "Corpus":
        """Return the corpus with its first `rows` rows; None for all."""
        return replace(self, examples=self.examples[:rows])


class Rows(NamedTuple):
    """The rows of one split.

    Args:
        examples: the rows.
        classes: class names that the source declares, in the order of their numbers; empty if it declares none.
    """

    examples: list[Example]
    classes: tuple[str, ...] = ()


def sample(corpus: Corpus, rows: int, seed: int) -> Corpus:
    """Draw rows without replacement, in random order.

    Args:
        corpus: the rows.
        rows: number of rows to draw; if the corpus has fewer, all are returned.
        seed: seed of the draw.

    Example:
        >>> corpus = Corpus("mine", "train", tuple(Example(text) for text in "abc"))
        >>> len(sample(corpus, 2, seed=0).examples)
        2
    """
    drawn = random.Random(seed).sample(range(len(corpus.examples)), min(rows, len(corpus.examples)))
    return replace(corpus, examples=tuple(corpus.examples[index] for index in drawn))
