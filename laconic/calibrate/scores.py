"""Scalars whose gradients have the Fisher information as their second moment.

Drawing y ~ p(y | z) and differentiating −log p(y | z) gives E[g g^T] = F, the Gauss-Newton Hessian of KL (Martens,
arXiv 1412.1193). For few values z the expectation is taken exactly: with F(z) = L L^T over the values themselves, the
scalars are the values along the columns of L (`laconic.numerics.distributions`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

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
    yield from ((values * axis).sum() for axis in predictions.distribution.fisher_factor(values))


def _sampled(predictions: Predictions, generator: torch.Generator) -> Tensor:
    values, distribution = predictions.values, predictions.distribution
    return distribution.loss(values, distribution.draw(values, generator)).sum()


def _of_data(predictions: Predictions) -> Tensor:
    if predictions.labels is None:
        raise must_be("labels", "'sampled' or 'enumerated' for this data, which has no labels", "data")
    return predictions.distribution.loss(predictions.values, predictions.labels).sum()
