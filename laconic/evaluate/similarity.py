"""The similarity of texts in an embedding model, by the similarity function that the folder of the model declares.

The functions are those of sentence-transformers (Reimers & Gurevych, EMNLP 2019, https://arxiv.org/abs/1908.10084):
cosine, dot product, or a negative distance.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import tokenize_corpus
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate.prediction import batch_by_length, predict_batches, restore_order
from laconic.model import LanguageModel
from laconic.model.embedding import COSINE
from laconic.progress import Track

BATCH = 32
DISTANCES = {"euclidean": 2.0, "manhattan": 1.0}
"""The similarities that are negative distances, with the order p of the norm."""


def similarities(
    lm: LanguageModel, corpus: Corpus, track: Track, label: str, *, max_length: int
) -> Float[Tensor, " rows"]:
    """The similarity of the two texts of each row, in float64.

    Args:
        lm: the embedding model.
        corpus: rows of two texts.
        track: reports progress.
        label: the name of the task, for progress and errors.
        max_length: the largest number of tokens in a text.

    Raises:
        UserError: a row has no second text, a text has no tokens, or an embedding is NaN or infinite.
    """
    rows = tokenize_corpus(lm, corpus, max_length=max_length)
    if len(rows) != 2 * len(corpus.examples):
        raise UserError(
            f"'{label}' compares two texts in each row, and the {len(corpus.examples)} rows of '{corpus.source}' have "
            f"{len(rows)} texts with tokens; give rows of two texts that are not empty."
        )
    parts, data = batch_by_length(lm, rows, BATCH)
    vectors = restore_order(
        torch.cat([predictions.values for _, predictions in predict_batches(lm, data, track, label)]), parts
    ).double()
    return similarity(vectors[::2], vectors[1::2], lm.embedding_pipeline.settings.similarity)


def similarity(
    first: Float[Tensor, "rows k"], second: Float[Tensor, "rows k"], function: str
) -> Float[Tensor, " rows"]:
    """The similarity of the two vectors in each row.

    Args:
        first: (rows, k) vectors.
        second: (rows, k) vectors.
        function: `cosine`, `dot`, `euclidean` or `manhattan`; the latter two are negative distances.

    Reference:
        Reimers & Gurevych, EMNLP 2019, https://arxiv.org/abs/1908.10084.

    Example:
        >>> similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]), "cosine")
        tensor([0.9600])
    """
    if function in DISTANCES:
        return -torch.linalg.vector_norm(first - second, ord=DISTANCES[function], dim=-1)
    if function == COSINE:
        return functional.cosine_similarity(first, second, dim=-1)
    return (first * second).sum(-1)


def neighbour_agreement(reference: Tensor, other: Tensor, function: str = COSINE) -> float:
    """The share of rows whose most similar other row is the same under two embeddings.

    Args:
        reference: (rows, d) embeddings of the original.
        other: (rows, d) embeddings of the compressed model.
        function: the similarity, as in `similarity`.

    Returns:
        A share from 0 to 1; 1 for fewer than two rows.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> neighbour_agreement(rows, rows)
        1.0
    """
    if len(reference) < 2:
        return 1.0
    return float((_nearest_rows(reference, function) == _nearest_rows(other, function)).double().mean())


def _nearest_rows(embeddings: Tensor, function: str) -> Tensor:
    nearest: list[Tensor] = []
    if function == COSINE:
        embeddings = functional.normalize(embeddings, dim=-1)
    for start in range(0, len(embeddings), 1024):
        part = embeddings[start : start + 1024]
        if function in DISTANCES:
            similarity = -torch.cdist(part, embeddings, p=DISTANCES[function])
        else:
            similarity = part @ embeddings.T
        similarity[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        nearest.append(similarity.argmax(-1))
    return torch.cat(nearest)
