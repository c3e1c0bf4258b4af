"""What a corpus is: rows of text, some of them with a second text, a label or a target."""

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Example:
    """One row. label: class number, or score on the scale that models are trained on (STS-B divided by 5).

    also:  other targets that are as right as `target`.
    group: what the row is averaged with before groups are averaged, a relation or a phenomenon; names within names
           are parted by a slash.
    """

    text: str
    pair: str | None = None
    label: float | None = None
    target: str | None = None
    also: tuple[str, ...] = ()
    group: str = ""

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


def sample(corpus: Corpus, rows: int, seed: int) -> Corpus:
    """`rows` rows drawn without replacement, in random order; all of them when there are no more."""
    drawn = random.Random(seed).sample(range(len(corpus.examples)), min(rows, len(corpus.examples)))
    return replace(corpus, examples=tuple(corpus.examples[index] for index in drawn))
