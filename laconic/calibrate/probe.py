"""Check that a model can read its rows: the first ones are tokenized, and no weights are loaded."""

from laconic.calibrate.batching import at_once, collate, tokenized
from laconic.calibrate.examples import Corpus
from laconic.model import LanguageModel

PROBED = 64
"""Number of rows. A wrong tokenizer shows in the first ones; later rows are checked when they are read."""


def check_readable(lm: LanguageModel, corpus: Corpus, max_length: int = 128) -> None:
    """Make batches of the first rows of `corpus`, as for a calibration, and forget them. Labels are not looked at.

    Args:
        lm: a model with its tokenizers; its weights may be absent.
        corpus: the rows that it is to read.
        max_length: tokens of a row at most.

    Raises:
        UserError: the model has no tokenizer, or one without the mask token that it needs, or one that gives tokens
            which it has no embeddings for, or its configuration does not say how targets begin.
    """
    rows = list(tokenized(lm, corpus.first(PROBED), max_length, seed=0))
    size = at_once(lm, PROBED)
    for start in range(0, len(rows), size):
        collate(lm, rows[start : start + size])
