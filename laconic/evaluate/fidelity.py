"""How far a compressed model is from its original, on the same rows: no labels are needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
from laconic.evaluate.comparable import check_comparable, check_readable
from laconic.evaluate.eval_task import in_order, predict_on, tokenizer_name
from laconic.evaluate.intervals import Table, interval
from laconic.evaluate.reference import Reference
from laconic.evaluate.similarity import DISTANCES
from laconic.model import Batch, LanguageModel, Predictions, Task, divergence
from laconic.model.embedding import COSINE
from laconic.progress import Track, silent

CHUNK = 2**24
"""How many logits are compared at a time: the comparison is in float64."""


@dataclass(frozen=True)
class Fidelity:
    """kl:          KL(original ‖ compressed), mean nats per prediction; kl_low and kl_high its 95 % interval over rows.
    top1_agreement: share of predictions whose likeliest class or token is the same. Of a multi-label model: of rows
                    for which every label is on the same side of a probability of one half. Of a regression: whose
                    scores all round to the same fifth. Of a plain encoder: of rows whose nearest other row is the same,
                    by the similarity that the original declares.
    cosine:         of the mean last hidden states, or of the vectors of a plain encoder, averaged over rows; None where
                    they are of different widths.
    predictions:    how many there were, of `rows` rows.

    The rest is what the figures depend on; `context`: tokens of a row at most, `tokenizer`: that of the original,
    `vectors`: what a plain encoder makes of its last hidden states, and the original where that is not the same.
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
    """Compare `lm` with `original` on `corpus`, read with the original's tokenizer.

    Raises:
        UserError: they predict different things, or one predicts NaN.
    """
    return compared(lm, Reference(original, corpus, seed=seed, limit=0), track)


def compared(lm: LanguageModel, reference: Reference, track: Track = silent) -> Fidelity:
    """The same, where several models are compared with one original on the same rows."""
    original, corpus, seed = reference.original, reference.corpus, reference.seed
    places = check_comparable(lm, original, corpus.classes)
    check_readable(lm, reference)
    lines: list[Tensor] = []
    embeddings: list[Tensor] = []
    with evaluating(lm, original):
        for number, batch in enumerate(track(reference.batches, "fidelity")):
            line, said = _compared(lm, batch, reference, number, places)
            lines.append(line)
            if original.task is Task.EMBEDDING:
                embeddings.append(said)
    table = in_order(torch.cat(lines), reference.parts).double().numpy()
    said = torch.cat(embeddings, dim=1) if embeddings else None
    similarity = original.embedding_pipeline.settings.similarity
    agreement = _mean(1, table) if said is None else neighbour_agreement(said[0], said[1], similarity)
    kl = interval(lambda rows: _mean(0, rows), table, seed)
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
        vectors=None if said is None else _vectors(lm, original),
    )


@torch.inference_mode()
def _compared(
    lm: LanguageModel, batch: Batch, reference: Reference, number: int, places: list[int] | None
) -> tuple[Tensor, Tensor]:
    """(rows, 4): summed KL, agreeing predictions, cosine, predictions; and (2, rows, k) what both said."""
    theirs, their_hidden = reference.says(number)
    ours, hidden = predict_on(lm, batch, hidden=True)
    if theirs.values.shape != ours.values.shape:
        shapes = f"{tuple(theirs.values.shape)} and {tuple(ours.values.shape)}"
        raise UserError(f"The models cannot be compared: their predictions have the shapes {shapes}.")
    if places is not None:
        # Of each class of the original, whose order counts.
        ours = ours._replace(values=ours.values[:, places])
    step = max(1, CHUNK // theirs.values.shape[1])
    parts = zip(_chunks(theirs, step), _chunks(ours, step), strict=True)
    figures = torch.cat(
        [torch.stack((divergence(p, q), _agrees(p, q), torch.ones(len(p.values)).to(p.values)), 1) for p, q in parts]
    ).double()
    sums = torch.zeros(len(hidden), 3, dtype=torch.float64, device=figures.device)
    sums.index_add_(0, theirs.rows, figures)
    cosine = _cosine(their_hidden.double(), hidden.double())[:, None]
    said = torch.stack((theirs.values, ours.values)) if lm.task is Task.EMBEDDING else torch.empty(0)
    return torch.cat((sums[:, :2], cosine, sums[:, 2:]), dim=1).cpu(), said.cpu()


def _cosine(theirs: Tensor, ours: Tensor) -> Tensor:
    """(rows,); NaN where the two are no vectors of one space."""
    if theirs.shape != ours.shape:
        return torch.full((len(ours),), torch.nan, dtype=ours.dtype, device=ours.device)
    return functional.cosine_similarity(theirs, ours, dim=-1)


def _chunks(predictions: Predictions, step: int) -> list[Predictions]:
    values, rows, _, distribution = predictions
    split: Sequence[tuple[Tensor, Tensor]] = list(zip(values.split(step), rows.split(step), strict=True))
    return [Predictions(part, numbers, None, distribution) for part, numbers in split]


def _agrees(reference: Predictions, other: Predictions) -> Tensor:
    """1 where both say the same."""
    return reference.distribution.same_decision(reference.values, other.values).double()


def _vectors(lm: LanguageModel, original: LanguageModel) -> str:
    ours, theirs = lm.embedding_pipeline.describe(), original.embedding_pipeline.describe()
    return ours if ours == theirs else f"{ours}; of the original: {theirs}"


def neighbour_agreement(reference: Tensor, other: Tensor, by: str = COSINE) -> float:
    """Share of rows whose most similar other row is the same under both embeddings, (rows, d), by a similarity of
    `laconic.model.embedding`."""
    if len(reference) < 2:
        return 1.0
    return float((_nearest(reference, by) == _nearest(other, by)).double().mean())


def _similar(part: Tensor, every: Tensor, by: str) -> Tensor:
    if by in DISTANCES:
        return -torch.cdist(part, every, p=DISTANCES[by])
    return part @ every.T


def _nearest(embeddings: Tensor, by: str) -> Tensor:
    nearest: list[Tensor] = []
    if by == COSINE:
        embeddings = functional.normalize(embeddings, dim=-1)
    for start in range(0, len(embeddings), 1024):
        part = embeddings[start : start + 1024]
        similarity = _similar(part, embeddings, by)
        similarity[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        nearest.append(similarity.argmax(-1))
    return torch.cat(nearest)


def _mean(column: int, table: Table) -> float:
    """Per prediction."""
    return float(table[:, column].sum() / table[:, 3].sum())
