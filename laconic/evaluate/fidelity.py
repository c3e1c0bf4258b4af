"""Compare a compressed model with its original on the same unlabelled rows: the distance between their outputs.

`Reference` runs the original. `check_same_tokens` checks that both models read the same tokens. `compare_to_reference`
measures the distance.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import max_positions, tokenize_corpus
from laconic.calibrate.classes import quote_model
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
from laconic.evaluate.comparable import check_comparable, check_token_names
from laconic.evaluate.eval_task import tokenizer_name
from laconic.evaluate.metrics import Scores, interval
from laconic.evaluate.prediction import COMPARED_LOGITS, batch_by_length, predict_batch, restore_order
from laconic.evaluate.similarity import neighbour_agreement
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, divergence
from laconic.progress import Track, silent

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
        self.context = min(max_positions(original) or CONTEXT, CONTEXT)
        rows = tokenize_corpus(original, corpus, max_length=self.context, seed=seed)
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


def check_same_tokens(lm: LanguageModel, reference: Reference) -> None:
    """Check that a model can read rows that were encoded by the original's tokenizer.

    Args:
        lm: the compressed model.
        reference: the original and the rows.

    Raises:
        UserError: a token id is another token in the tokenizer of `lm`, or the rows are too long for `lm`.
    """
    original = reference.original
    longest, length = max_positions(lm), max(batch["input_ids"].shape[-1] for batch in reference.batches)
    if longest is not None and length > longest:
        raise UserError(
            f"The models cannot be compared: {quote_model(lm)} reads {longest} tokens at most, and "
            f"{quote_model(original)} reads rows of {length}; name the model that it was made from."
        )
    check_token_names(
        lm, original, {token for batch in reference.batches for token in batch["input_ids"].unique().tolist()}
    )


@dataclass(frozen=True)
class Fidelity:
    """The distance of a compressed model from its original, with the settings of the measurement.

    Args:
        kl: KL(original ‖ compressed), the mean over predictions, in nats.
        kl_low: lower bound of its 95 % interval over rows.
        kl_high: upper bound.
        top1_agreement: share of predictions whose most likely class or token is the same. For a multi-label model: the
            share of rows for which each label is on the same side of a probability of ½. For a regression: the share of
            rows whose scores all round to the same multiple of 0.2. For an encoder without a head: the share of rows
            whose most similar other row is the same.
        cosine: cosine similarity of the mean last hidden states, or of the embeddings of an encoder without a head,
            averaged over rows; None if their widths differ, or if exported models do not give them.
        predictions: the number of predictions.
        rows: the number of rows.
        source: the data source of the rows.
        split: the split of the data source.
        context: the largest number of tokens in a row.
        tokenizer: class and vocabulary size of the original's tokenizer, with which the rows were encoded.
        seed: the random seed of the resampling and of masked positions.
        vectors: how an encoder without a head pools its last hidden states; None for other models.
        stride: the number of tokens by which the windows of a perplexity task advance; None for rows that are cut at
            `context`.
        dtype: the dtype of the matrix products in the blocks; None for rows that are cut, which run in float32, and for
            other engines.
        note: how the divergence was computed, if it is a lower bound; None if it is over the whole vocabulary.
    """

    kl: float
    kl_low: float
    kl_high: float
    top1_agreement: float
    cosine: float | None
    predictions: int
    rows: int
    source: str
    split: str
    context: int
    tokenizer: str
    seed: int
    vectors: str | None = None
    stride: int | None = None
    dtype: str | None = None
    note: str | None = None


def compare_to_reference(lm: LanguageModel, reference: Reference, track: Track = silent) -> Fidelity:
    """Measure the distance of a compressed model from its original.

    Args:
        lm: the compressed model.
        reference: the original and the rows, with the predictions of the original in memory.
        track: reports progress.

    Raises:
        UserError: the models have different tasks, vocabularies or classes, or one of them predicts NaN.
    """
    original, corpus, seed = reference.original, reference.corpus, reference.seed
    order = check_comparable(lm, original, corpus.classes)
    check_same_tokens(lm, reference)
    lines: list[Tensor] = []
    pairs: list[Tensor] = []
    with evaluating(lm, original):
        for number, batch in enumerate(track(reference.batches, "fidelity")):
            line, pair = _compare_batch(lm, batch, reference, number, order)
            lines.append(line)
            pairs.append(pair)
    table = restore_order(torch.cat(lines), reference.parts).numpy()
    if original.task is ModelTask.EMBEDDING:
        similarity = original.embedding_pipeline.settings.similarity
        embeddings = torch.cat(pairs, dim=1)
        agreement = neighbour_agreement(embeddings[0], embeddings[1], similarity)
        vectors, original_vectors = lm.embedding_pipeline.describe(), original.embedding_pipeline.describe()
        if vectors != original_vectors:
            vectors = f"{vectors}; of the original: {original_vectors}"
    else:
        agreement, vectors = None, None
    found = fidelity_of(table, corpus, seed=seed, context=reference.context, tokenizer=tokenizer_name(original))
    return found if agreement is None else replace(found, top1_agreement=agreement, vectors=vectors)


def fidelity_of(table: Scores, corpus: Corpus, *, seed: int, context: int, tokenizer: str) -> Fidelity:
    """The distance of two models from the sums of each row.

    Args:
        table: (rows, 4): summed KL, number of agreeing predictions, cosine (NaN if the widths differ), and number of
            predictions.
        corpus: the rows.
        seed: the random seed of the interval.
        context: the largest number of tokens in a row.
        tokenizer: the tokenizer of the original.
    """
    kl = interval(lambda rows: _mean_per_prediction(0, rows), table, seed)
    return Fidelity(
        kl=kl.value,
        kl_low=kl.low,
        kl_high=kl.high,
        top1_agreement=_mean_per_prediction(1, table),
        cosine=None if np.isnan(table[:, 2]).any() else float(np.mean(table[:, 2])),
        predictions=int(table[:, 3].sum()),
        rows=len(table),
        source=corpus.source,
        split=corpus.split,
        context=context,
        tokenizer=tokenizer,
        seed=seed,
    )


@torch.inference_mode()
def _compare_batch(
    lm: LanguageModel, batch: Batch, reference: Reference, number: int, order: list[int] | None
) -> tuple[Tensor, Tensor]:
    """Compare two models on one batch.

    Returns:
        (rows, 4): summed KL, number of agreeing predictions, cosine, number of predictions; and (2, rows, width) the
        embeddings of the original and of `lm`, which are empty for models with a head.
    """
    theirs, their_hidden = reference.predict(number)
    ours, hidden = predict_batch(lm, batch, hidden=True)
    if theirs.values.shape != ours.values.shape:
        shapes = f"{tuple(theirs.values.shape)} and {tuple(ours.values.shape)}"
        raise UserError(f"The models cannot be compared: their predictions have the shapes {shapes}.")
    if order is not None:
        # Put the classes into the order of the original.
        ours = ours._replace(values=ours.values[:, order])
    step = max(1, COMPARED_LOGITS // theirs.values.shape[1])
    sums = torch.zeros(len(hidden), 3, dtype=torch.float64, device=hidden.device)
    for before, after, rows in zip(
        *(part.split(step) for part in (theirs.values, ours.values, theirs.rows)), strict=True
    ):
        p, q = theirs._replace(values=before), ours._replace(values=after)
        same = theirs.distribution.same_decision(before, after).double()
        sums.index_add_(0, rows, torch.stack((divergence(p, q).double(), same, torch.ones_like(same)), dim=1))
    if their_hidden.shape == hidden.shape and hidden.shape[1]:
        cosine = functional.cosine_similarity(their_hidden.double(), hidden.double(), dim=-1)
    else:
        cosine = torch.full((len(hidden),), torch.nan, dtype=torch.float64, device=hidden.device)
    embeddings = torch.stack((theirs.values, ours.values)) if lm.task is ModelTask.EMBEDDING else torch.empty(0)
    return torch.column_stack((sums[:, :2], cosine, sums[:, 2])).cpu(), embeddings.cpu()


def _mean_per_prediction(column: int, table: Scores) -> float:
    """The sum of a column divided by the number of predictions."""
    return float(table[:, column].sum() / table[:, 3].sum())
