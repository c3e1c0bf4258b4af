"""Scalars whose gradients have the Fisher information as their second moment.

With p = softmax(logits): drawing y ~ p and differentiating −log p_y gives E[g g^T] = F, the Gauss-Newton Hessian of
KL (Martens, arXiv 1412.1193). For few classes the expectation is taken exactly: over the logits it is
diag(p) − p p^T = L L^T, so the scalars are the logits along the columns of L, one fewer than classes (its null vector
is the constant). A Gaussian mean μ with unit variance has F = Σ_i J_i^T J_i, by coordinates or by a random
direction ε ~ N(0, I).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.calibration import Labels
from laconic.errors import UserError, must_be
from laconic.model import Predictions

ENUMERATED_UP_TO = 4
DRAWS = 4
"""Samples of a row with one prediction; a text of many predictions has one for each of its tokens as it is."""


def scores(predictions: Predictions, labels: Labels, generator: torch.Generator) -> Iterator[Tensor]:
    """The scalars to differentiate for one batch; their gradients' outer products are to be added up.

    Raises:
        UserError: a prediction is not finite, the data's own labels are asked for and there are none, or enumeration
            where it would not be exact.
    """
    if not predictions.values.isfinite().all():
        raise UserError("The model's predictions are not finite; check the model and the data.")
    # Several predictions of a row share its hidden states: summed over classes their gradients would not be
    # independent, as drawn labels are, and F would hold their cross terms.
    alone = len(predictions.rows.unique()) == len(predictions.rows)
    few = predictions.values.shape[-1] <= ENUMERATED_UP_TO
    if labels == "enumerated" and not alone:
        raise must_be("labels", "'sampled' or 'data' for a model with several predictions per row", labels)
    if labels == "data":
        yield _of_data(predictions)
    elif labels == "enumerated" or (labels == "auto" and few and alone):
        yield from _enumerated(predictions)
    else:
        draws = DRAWS if alone else 1
        yield from (_sampled(predictions, generator) / draws**0.5 for _ in range(draws))


def _enumerated(predictions: Predictions) -> Iterator[Tensor]:
    values = predictions.values
    if not predictions.categorical:
        yield from (values[:, i].sum() for i in range(values.shape[-1]))
        return
    p = values.detach().double().softmax(-1)
    variances, axes = torch.linalg.eigh(p.diag_embed() - p[:, :, None] * p[:, None, :])
    L = (axes * variances.clamp(min=0).sqrt()[:, None, :]).to(values)
    yield from ((values * L[:, :, c]).sum() for c in range(1, values.shape[-1]))


def _sampled(predictions: Predictions, generator: torch.Generator) -> Tensor:
    values = predictions.values
    if not predictions.categorical:
        direction = torch.randn(values.shape, generator=generator)
        return (values * direction.to(values)).sum()
    probabilities = values.detach().float().softmax(-1).cpu()
    drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return functional.cross_entropy(values, drawn.to(values.device), reduction="sum")


def _of_data(predictions: Predictions) -> Tensor:
    values, labels = predictions.values, predictions.labels
    if labels is None:
        raise must_be("labels", "'sampled' or 'enumerated' for this data, which has no labels", "data")
    if predictions.categorical:
        return functional.cross_entropy(values, labels.long(), reduction="sum")
    return 0.5 * (values.squeeze(-1) - labels.to(values)).square().sum()
