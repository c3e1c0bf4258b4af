"""Fidelity: the distance between the outputs of a compressed model and its original on the same unlabelled rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
from laconic.evaluate.eval_task import tokenizer_name
from laconic.evaluate.metrics import Scores, interval
from laconic.evaluate.prediction import predict_batch, restore_order
from laconic.evaluate.reference import Reference, check_comparable, check_same_tokens
from laconic.evaluate.similarity import neighbour_agreement
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, divergence
from laconic.progress import Track, silent

CHUNK = 2**24
"""The number of logits that are compared at once; the comparison is in float64."""


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
            averaged over rows; None if their widths differ.
        predictions: the number of predictions.
        rows: the number of rows.
        source: the data source of the rows.
        split: the split of the data source.
        context: the largest number of tokens in a row.
        tokenizer: class and vocabulary size of the original's tokenizer, with which the rows were encoded.
        seed: the random seed of the resampling and of masked positions.
        vectors: how an encoder without a head pools its last hidden states; None for other models.
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


def fidelity(
    lm: LanguageModel, original: LanguageModel, corpus: Corpus, *, seed: int = 0, track: Track = silent
) -> Fidelity:
    """Compare a compressed model with its original.

    Args:
        lm: the compressed model.
        original: the model that it was made from.
        corpus: rows of text, which are encoded by the original's tokenizer.
        seed: the random seed of the bootstrap and of masked positions.
        track: reports progress.

    Raises:
        UserError: the models have different tasks, vocabularies or classes, or one of them predicts NaN.
    """
    return compare_to_reference(lm, Reference(original, corpus, seed=seed, limit=0), track)


def compare_to_reference(lm: LanguageModel, reference: Reference, track: Track = silent) -> Fidelity:
    """Like `fidelity`, for comparing several models with the same original on the same rows.

    Args:
        lm: the compressed model.
        reference: the original and the rows, with the predictions of the original in memory.
        track: reports progress.

    Raises:
        UserError: the models have different tasks, vocabularies or classes, or one of them predicts NaN.
    """
    original, corpus, seed = reference.original, reference.corpus, reference.seed
    places = check_comparable(lm, original, corpus.classes)
    check_same_tokens(lm, reference)
    lines: list[Tensor] = []
    embeddings: list[Tensor] = []
    with evaluating(lm, original):
        for number, batch in enumerate(track(reference.batches, "fidelity")):
            line, pair = _compare_batch(lm, batch, reference, number, places)
            lines.append(line)
            if original.task is ModelTask.EMBEDDING:
                embeddings.append(pair)
    table = restore_order(torch.cat(lines), reference.parts).double().numpy()
    vectors = torch.cat(embeddings, dim=1) if embeddings else None
    similarity = original.embedding_pipeline.settings.similarity
    agreement = (
        _mean_per_prediction(1, table) if vectors is None else neighbour_agreement(vectors[0], vectors[1], similarity)
    )
    kl = interval(lambda rows: _mean_per_prediction(0, rows), table, seed)
    return Fidelity(
        kl=kl.value,
        kl_low=kl.low,
        kl_high=kl.high,
        top1_agreement=agreement,
        cosine=None if np.isnan(table[:, 2]).any() else float(np.mean(table[:, 2])),
        predictions=int(table[:, 3].sum()),
        rows=len(table),
        source=corpus.source,
        split=corpus.split,
        context=reference.context,
        tokenizer=tokenizer_name(original),
        seed=seed,
        vectors=None if vectors is None else _vectors(lm, original),
    )


@torch.inference_mode()
def _compare_batch(
    lm: LanguageModel, batch: Batch, reference: Reference, number: int, places: list[int] | None
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
    if places is not None:
        # Put the classes into the order of the original.
        ours = ours._replace(values=ours.values[:, places])
    step = max(1, CHUNK // theirs.values.shape[1])
    parts = zip(_split(theirs, step), _split(ours, step), strict=True)
    figures = torch.cat(
        [torch.stack((divergence(p, q), _agreement(p, q), torch.ones(len(p.values)).to(p.values)), 1) for p, q in parts]
    ).double()
    sums = torch.zeros(len(hidden), 3, dtype=torch.float64, device=figures.device)
    sums.index_add_(0, theirs.rows, figures)
    cosine = _cosine(their_hidden.double(), hidden.double())[:, None]
    embeddings = torch.stack((theirs.values, ours.values)) if lm.task is ModelTask.EMBEDDING else torch.empty(0)
    return torch.cat((sums[:, :2], cosine, sums[:, 2:]), dim=1).cpu(), embeddings.cpu()


def _cosine(theirs: Tensor, ours: Tensor) -> Tensor:
    """(rows,); NaN where the widths differ."""
    if theirs.shape != ours.shape:
        return torch.full((len(ours),), torch.nan, dtype=ours.dtype, device=ours.device)
    return functional.cosine_similarity(theirs, ours, dim=-1)


def _split(predictions: Predictions, step: int) -> list[Predictions]:
    values, rows, _, distribution = predictions
    split: Sequence[tuple[Tensor, Tensor]] = list(zip(values.split(step), rows.split(step), strict=True))
    return [Predictions(part, numbers, None, distribution) for part, numbers in split]


def _agreement(reference: Predictions, other: Predictions) -> Tensor:
    """1 where both predict the same, else 0."""
    return reference.distribution.same_decision(reference.values, other.values).double()


def _vectors(lm: LanguageModel, original: LanguageModel) -> str:
    ours, theirs = lm.embedding_pipeline.describe(), original.embedding_pipeline.describe()
    return ours if ours == theirs else f"{ours}; of the original: {theirs}"


def _mean_per_prediction(column: int, table: Scores) -> float:
    """The sum of a column divided by the number of predictions."""
    return float(table[:, column].sum() / table[:, 3].sum())
