"""Distances between the layers of a student and its teacher, which distillation minimises.

The divergence of their predictions is in `laconic.numerics.distributions`.

Hidden states   mean squared error, or 1 − cosine                 (Jiao et al., TinyBERT, 2020, arXiv 1909.10351, eq. 8)
Layer pairs     mean squared error of G = H₁ H₂ᵀ / d, which needs no projection where widths differ
                (Yim et al., CVPR 2017, as "mmd" in TextBrewer: Yang et al., 2020, arXiv 2002.12620)
Attention       mean squared error, or cross-entropy, of attention probabilities          (TinyBERT, eq. 7)
Relations       KL of softmax(V Vᵀ / √d) by head          (Wang et al., MiniLM, NeurIPS 2020, arXiv 2002.10957, eq. 8)

`mask` (rows, tokens) is True at real tokens; padding does not count. H and V are (rows, tokens, width), A are
probabilities (rows, heads, queries, keys). All results are scalar means, so that no weight depends on the length of
rows.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Mask = Bool[Tensor, "rows tokens"]


def hidden_mse(
    teacher: Float[Tensor, "rows tokens d"], student: Float[Tensor, "rows tokens d"], mask: Mask
) -> Float[Tensor, ""]:
    """Mean of (H_T − H_S)² over real tokens and the width.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> hidden_mse(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), mask)
        tensor(1.)
    """
    return (teacher - student)[mask].square().mean()


def hidden_cosine(
    teacher: Float[Tensor, "rows tokens d"], student: Float[Tensor, "rows tokens d"], mask: Mask
) -> Float[Tensor, ""]:
    """Mean of 1 − cos(H_T, H_S) over real tokens.

    Example:
        >>> hidden_cosine(torch.ones(1, 1, 4), -torch.ones(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))
        tensor(2.)
    """
    return 1 - functional.cosine_similarity(teacher[mask], student[mask], dim=-1).mean()


def fsp_matrix(
    first: Float[Tensor, "rows tokens d"], second: Float[Tensor, "rows tokens d"]
) -> Float[Tensor, "rows tokens tokens"]:
    """G = H₁ H₂ᵀ / d of each row: the flow of solution procedure between two layers.

    Example:
        >>> fsp_matrix(torch.ones(1, 2, 4), torch.ones(1, 2, 4)).shape
        torch.Size([1, 2, 2])
    """
    return first @ second.mT / first.shape[-1]


def gram_mse(
    teacher: Float[Tensor, "rows tokens tokens"], student: Float[Tensor, "rows tokens tokens"], mask: Mask
) -> Float[Tensor, ""]:
    """Mean of (G_T − G_S)² over pairs of real tokens.

    Example:
        >>> gram_mse(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor(1.)
    """
    return (teacher - student)[pair_mask(mask)].square().mean()


def attention_mse(
    teacher: Float[Tensor, "rows ht tokens tokens"],
    student: Float[Tensor, "rows hs tokens tokens"],
    mask: Mask,
) -> Float[Tensor, ""]:
    """Mean of (A_T − A_S)² over heads and pairs of real tokens; of the means over heads if their numbers differ.

    Example:
        >>> attention_mse(torch.ones(1, 2, 1, 1), torch.zeros(1, 4, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor(1.)
    """
    teacher, student = _match_heads(teacher, student)
    pairs = pair_mask(mask)[:, None].expand_as(teacher)
    return (teacher - student)[pairs].square().mean()


def attention_cross_entropy(
    teacher: Float[Tensor, "rows ht tokens tokens"], student: Float[Tensor, "rows hs tokens tokens"], mask: Mask
) -> Float[Tensor, ""]:
    """Mean of −Σ A_T log A_S over heads and real queries; of the means over heads if their numbers differ.

    Example:
        >>> A = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
        >>> attention_cross_entropy(A, A, torch.ones(1, 2, dtype=torch.bool))
        tensor(0.6931)
    """
    teacher, student = _match_heads(teacher, student)
    entropies = -(teacher * student.clamp(min=torch.finfo(student.dtype).tiny).log()).sum(-1)
    return entropies.mT[mask].mean()


def relation_divergence(
    teacher: Float[Tensor, "rows tokens dt"], student: Float[Tensor, "rows tokens ds"], heads: int, mask: Mask
) -> Float[Tensor, ""]:
    """Mean KL(teacher ‖ student) of softmax(V Vᵀ / √(d / heads)) over heads and real tokens.

    Args:
        teacher: values of the teacher.
        student: values of the student, of any width that `heads` divides.
        heads: relation heads.
        mask: True at real tokens.

    Example:
        >>> V = torch.ones(1, 2, 4)
        >>> relation_divergence(V, V, heads=2, mask=torch.ones(1, 2, dtype=torch.bool))
        tensor(0.)
    """
    log_p, log_q = (log_relations(values, heads, mask) for values in (teacher, student))
    p = log_p.exp()
    # At padding both are −∞, and their difference is NaN.
    terms = torch.where(p > 0, p * (log_p - log_q), 0)
    return terms.sum(-1).mT[mask].mean()


def log_relations(
    values: Float[Tensor, "rows tokens d"], heads: int, mask: Mask
) -> Float[Tensor, "rows heads tokens tokens"]:
    """log softmax(V Vᵀ / √(d / heads)) of each head; −∞ at padding.

    Example:
        >>> log_relations(torch.zeros(1, 2, 4), heads=2, mask=torch.ones(1, 2, dtype=torch.bool)).exp().shape
        torch.Size([1, 2, 2, 2])
    """
    rows, tokens, width = values.shape
    V = values.view(rows, tokens, heads, width // heads).transpose(1, 2)
    scores = V @ V.mT / (width // heads) ** 0.5
    return scores.masked_fill(~mask[:, None, None], -torch.inf).log_softmax(-1)


def pair_mask(mask: Mask) -> Bool[Tensor, "rows tokens tokens"]:
    """True where both tokens of a pair are real, (rows, tokens, tokens).

    Example:
        >>> pair_mask(torch.tensor([[True, False]])).tolist()
        [[[True, False], [False, False]]]
    """
    return mask[:, :, None] & mask[:, None]


def _match_heads(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.shape[1] == student.shape[1]:
        return teacher, student
    return teacher.mean(1, keepdim=True), student.mean(1, keepdim=True)
