"""How similar an embedding model finds two texts: the similarity of their vectors that its folder declares.

As sentence-transformers has it (Reimers & Gurevych, EMNLP 2019, https://arxiv.org/abs/1908.10084): the cosine, the dot
product, or a distance with its sign turned, so that more is nearer.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import rows_of
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate.eval_task import by_length, in_order, predicted
from laconic.model import LanguageModel
from laconic.model.embedding import COSINE
from laconic.progress import Track

BATCH = 32
DISTANCES = {"euclidean": 2.0, "manhattan": 1.0}
"""Similarities that are a distance, with its norm."""


def similarities(
    lm: LanguageModel, corpus: Corpus, track: Track, what: str, *, max_length: int
) -> Float[Tensor, " rows"]:
    """The similarity of the two texts of each row, in float64.

    Args:
        what: is judged, for progress and sentences.
        max_length: tokens of a text at most.

    Raises:
        UserError: a row has no second text, or a text no tokens; a vector is NaN or infinite.
    """
    rows = rows_of(lm, corpus, max_length=max_length)
    if len(rows) != 2 * len(corpus.examples):
        raise UserError(
            f"'{what}' compares two texts a row, and {len(corpus.examples)} rows of '{corpus.source}' have {len(rows)} "
            "texts with tokens; give rows of two texts that are not empty."
        )
    parts, data = by_length(lm, rows, BATCH)
    vectors = in_order(torch.cat([said.values for _, said in predicted(lm, data, track, what)]), parts).double()
    return similarity(vectors[::2], vectors[1::2], lm.embedding_pipeline.settings.similarity)


def similarity(one: Float[Tensor, "rows k"], other: Float[Tensor, "rows k"], by: str) -> Float[Tensor, " rows"]:
    """Of each vector with that of the same row; `by` is one of `laconic.model.embedding.SIMILARITIES`."""
    if by in DISTANCES:
        return -torch.linalg.vector_norm(one - other, ord=DISTANCES[by], dim=-1)
    if by == COSINE:
        one, other = functional.normalize(one, dim=-1), functional.normalize(other, dim=-1)
    return (one * other).sum(-1)
