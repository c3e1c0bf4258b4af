"""What an original says of the rows on which models are compared with it: asked once for all of them."""

from torch import Tensor

from laconic.calibrate.batching import positions, rows_of
from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import by_length, predict_on
from laconic.model import LanguageModel, Predictions

BATCH = 16
CONTEXT = 128
LIMIT = 2**28
"""Bytes of answers that are kept; others, as those of a large vocabulary on many rows, are asked for each time."""


class Reference:
    """An original and rows of text, read with its tokenizer.

    context: tokens of a row that are read at most.
    batches: the rows by their length; `parts` are their places, batch by batch.
    """

    def __init__(self, original: LanguageModel, corpus: Corpus, *, seed: int = 0, limit: int = LIMIT) -> None:
        self.original, self.corpus, self.seed = original, corpus, seed
        self.context = min(positions(original) or CONTEXT, CONTEXT)
        rows = rows_of(original, corpus, max_length=self.context, seed=seed)
        self.parts, self.batches = by_length(original, rows, BATCH)
        self._said: dict[int, tuple[Predictions, Tensor]] = {}
        self._room = limit

    def says(self, number: int) -> tuple[Predictions, Tensor]:
        """What the original predicts for a batch, and the mean last hidden state of each row.

        Raises:
            UserError: it predicts NaN.
        """
        if number in self._said:
            return self._said[number]
        said = predict_on(self.original, self.batches[number], hidden=True)
        self._room -= said[0].values.nbytes + said[1].nbytes
        if self._room >= 0:
            self._said[number] = said
        return said


class References:
    """The last reference that was asked for: of evaluations against one original only the first asks it."""

    def __init__(self) -> None:
        self._last: Reference | None = None

    def of(self, original: LanguageModel, corpus: Corpus, seed: int = 0) -> Reference:
        """That of this very original, which nobody may have changed, on these rows."""
        last = self._last
        if last is None or last.original is not original or (last.corpus, last.seed) != (corpus, seed):
            last = self._last = Reference(original, corpus, seed=seed)
        return last
