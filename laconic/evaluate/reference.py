"""The original model in a comparison: its predictions, and checks that a compressed model is comparable with it."""

from collections.abc import Sequence

from torch import Tensor

from laconic.calibrate.batching import positions, rows_of
from laconic.calibrate.classes import called, output_places
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate.eval_task import with_article
from laconic.evaluate.prediction import batch_by_length, predict_batch
from laconic.model import LanguageModel, ModelTask, Predictions
from laconic.model.tokens import target_vocabulary_size, vocabulary_size

BATCH = 16
CONTEXT = 128
CACHE_BYTES = 2**28
"""The largest size of predictions that are kept in memory, in bytes. Others are recomputed each time."""


class Reference:
    """An original model with the rows of text on which other models are compared with it.

    Args:
        original: the original model; its tokenizer encodes the rows.
        corpus: rows of text.
        seed: the random seed of the masked positions, for a masked language model.
        limit: the largest size of predictions that are kept in memory, in bytes.

    Attributes:
        context: the largest number of tokens in a row.
        batches: the rows, sorted by length.
        parts: the indices of the rows in each batch.
    """

    def __init__(self, original: LanguageModel, corpus: Corpus, *, seed: int = 0, limit: int = CACHE_BYTES) -> None:
        self.original, self.corpus, self.seed = original, corpus, seed
        self.context = min(positions(original) or CONTEXT, CONTEXT)
        rows = rows_of(original, corpus, max_length=self.context, seed=seed)
        self.parts, self.batches = batch_by_length(original, rows, BATCH)
        self._cache: dict[int, tuple[Predictions, Tensor]] = {}
        self._room = limit

    def predict(self, number: int) -> tuple[Predictions, Tensor]:
        """The original's predictions for a batch, and the mean last hidden state of each row.

        Args:
            number: index of the batch.

        Raises:
            UserError: the original predicts NaN.
        """
        if number in self._cache:
            return self._cache[number]
        prediction = predict_batch(self.original, self.batches[number], hidden=True)
        self._room -= prediction[0].values.nbytes + prediction[1].nbytes
        if self._room >= 0:
            self._cache[number] = prediction
        return prediction


class ReferenceCache:
    """Keeps the last `Reference`, so that several evaluations against one original run the original once."""

    def __init__(self) -> None:
        self._last: Reference | None = None

    def get(self, original: LanguageModel, corpus: Corpus, seed: int = 0) -> Reference:
        """The reference for an original and rows; the kept one, if the arguments are the same as in the last call.

        Args:
            original: the original model, compared by identity. Its weights must not change between calls.
            corpus: rows of text.
            seed: the random seed of masked positions.
        """
        last = self._last
        if last is None or last.original is not original or (last.corpus, last.seed) != (corpus, seed):
            last = self._last = Reference(original, corpus, seed=seed)
        return last


def check_comparable(lm: LanguageModel, original: LanguageModel, classes: Sequence[str] = ()) -> list[int] | None:
    """Check that two models predict the same things, so that they can be compared row by row.

    Args:
        lm: the compressed model, with or without weights.
        original: the original model, with or without weights.
        classes: names of the classes in the data.

    Returns:
        For each output of the original, the index of the same class among the outputs of `lm`; None if the order is the
        same.

    Raises:
        UserError: the models have different tasks, vocabularies or classes.
    """
    if lm.task is not original.task:
        ours, theirs = with_article(lm.task.value), with_article(original.task.value)
        raise UserError(
            f"The models cannot be compared: one is {ours}, the other {theirs} model; "
            "name the model that it was made from."
        )
    ours, theirs = _vocabulary_size(lm), _vocabulary_size(original)
    if ours != theirs:
        raise UserError(
            f"The models cannot be compared: {called(lm)} tells {ours} tokens apart, and {called(original)} {theirs}; "
            "name the model that it was made from."
        )
    return output_places(original, lm, classes)


def check_same_tokens(lm: LanguageModel, reference: Reference) -> None:
    """Check that a model can read rows that were encoded by the original's tokenizer.

    Args:
        lm: the compressed model.
        reference: the original and the rows.

    Raises:
        UserError: a token id is another token in the tokenizer of `lm`, or the rows are too long for `lm`.
    """
    original = reference.original
    longest, length = positions(lm), max(batch["input_ids"].shape[1] for batch in reference.batches)
    if longest is not None and length > longest:
        raise UserError(
            f"The models cannot be compared: {called(lm)} reads {longest} tokens at most, and {called(original)} reads "
            f"rows of {length}; name the model that it was made from."
        )
    if lm.tokenizer is None or original.tokenizer is None:
        return
    used = sorted({token for batch in reference.batches for token in batch["input_ids"].unique().tolist()})
    names = zip(
        *(tokenizer.convert_ids_to_tokens(used) for tokenizer in (lm.tokenizer, original.tokenizer)), strict=True
    )
    for token, (ours, theirs) in zip(used, names, strict=True):
        if ours != theirs:
            raise UserError(
                f"The models cannot be compared: token {token} is {_quote(ours)} to the tokenizer of {called(lm)} and "
                f"{_quote(theirs)} to that of {called(original)}; name the model that it was made from."
            )


def _quote(token: str | None) -> str:
    return "nothing" if token is None else f"'{token}'"


def _vocabulary_size(lm: LanguageModel) -> int | None:
    """The size of the vocabulary that the model predicts; None for a model that does not predict tokens."""
    if lm.task is ModelTask.SEQ2SEQ:
        return target_vocabulary_size(lm.model)
    return vocabulary_size(lm.model) if lm.task in (ModelTask.CAUSAL, ModelTask.MASKED) else None
