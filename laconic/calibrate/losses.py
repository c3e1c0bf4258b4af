"""Losses whose gradients have the Fisher information of a model as their second moment.

If y is drawn from the model's prediction p(y | z), the gradients g of −log p(y | z) satisfy E[g g^T] = F, the
Gauss-Newton Hessian of the KL divergence (Martens, arXiv 1412.1193). For few values z the expectation is computed
exactly: with F(z) = L L^T, the loss l^T z is differentiated for each column l of L (`laconic.numerics.distributions`).

The loss of a batch is a sum over its tokens. If the logits of a batch are many, the head runs on some of the last
hidden states at a time, and their gradients are put together before the body is differentiated. Labels are drawn in
the same order, so the draws are those of the whole batch.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.collation import to_device
from laconic.errors import must_be
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, Site, predict
from laconic.model.batch import LABELS
from laconic.model.halves import SHORT, Halves, find_halves
from laconic.model.predictions import predicted_tokens
from laconic.model.tokens import target_vocabulary_size, vocabulary_size
from laconic.numerics.moments import check_finite

Labels = Literal["auto", "sampled", "enumerated", "data"]
"""The source of the labels for the Fisher information: the predictions of the model, or the data."""

ENUMERATED_UP_TO = 4
DRAWS = 4
"""Labels sampled for each row with one prediction; a row with several predictions gets one label for each."""

LOGITS = 2**23
"""The largest number of logits that are in memory at a time: 32 MB, several times over in the backward pass."""


def fisher_losses(predictions: Predictions, labels: Labels, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the losses of one batch whose gradients have the Fisher information as their second moment.

    Args:
        predictions: the predictions of the batch.
        labels: where labels come from; see `Calibration`.
        generator: draws sampled labels.

    Raises:
        UserError: a prediction is not finite; `labels` is "data" and the data has none; or `labels` is "enumerated"
            and a row has several predictions, for which enumeration is not exact.
    """
    # Predictions of one row share hidden states. With enumeration their gradients would not be independent, as they
    # are with sampled labels, and F would contain cross terms.
    if len(predictions.rows.unique()) < len(predictions.rows):
        yield _token_loss(predictions, labels, generator)
        return
    values, distribution = predictions.values, predictions.distribution
    if labels == "data":
        yield _token_loss(predictions, labels, generator)
    elif labels == "enumerated" or (labels == "auto" and values.shape[-1] <= ENUMERATED_UP_TO):
        _check_predictions(predictions)
        yield from ((values * axis).sum() for axis in distribution.fisher_factor(values))
    else:
        for _ in range(DRAWS):
            yield _token_loss(predictions, labels, generator) / DRAWS**0.5


def _token_loss(predictions: Predictions, labels: Labels, generator: torch.Generator) -> Tensor:
    """The summed loss of some predictions, with one label for each."""
    _check_predictions(predictions)
    values, distribution = predictions.values, predictions.distribution
    if labels == "enumerated":
        raise must_be("labels", "'sampled' or 'data' for a model with several predictions per row", labels)
    if labels != "data":
        return distribution.loss(values, distribution.draw(values, generator)).sum()
    if predictions.labels is None:
        raise must_be("labels", "'sampled' or 'enumerated' for this data, which has no labels", labels)
    return distribution.loss(values, predictions.labels).sum()


def _check_predictions(predictions: Predictions) -> None:
    check_finite(predictions.possible_values, "The model's predictions are not finite; check the model and the data.")


@dataclass(frozen=True)
class LossGradients:
    """Differentiates the losses of batches.

    Args:
        lm: the model, whose weights need no gradients. Those of a streamed one are on loan while they run.
        labels: where labels come from; see `Calibration`.
        halves: the model in two halves, of which the head runs on some states at a time; None to run it as a whole.
    """

    lm: LanguageModel
    labels: Labels
    halves: Halves | None = None

    def backward(self, batch: Batch, generator: torch.Generator) -> Iterator[int]:
        """Run the model on a batch, and differentiate its losses one after another.

        Args:
            batch: the batch, on the device of the model.
            generator: draws sampled labels.

        Yields:
            The number of predictions, after each loss; by then its gradients are added to those of all leaves.

        Raises:
            UserError: as for `fisher_losses`.
        """
        if self.halves is not None and count_logits(self.lm, batch) > LOGITS:
            counted, _ = predicted_tokens(self.lm.task, batch)
            if counted.sum(1).max() > 1:
                yield self._backward_in_halves(self.halves, batch, generator)
                return
        with self.lm.loaned_on_call():
            predictions, _ = predict(self.lm, batch)
        losses = list(fisher_losses(predictions, self.labels, generator))
        for order, loss in enumerate(losses):
            loss.backward(retain_graph=order + 1 < len(losses))
            yield len(predictions.values)

    def _backward_in_halves(self, halves: Halves, batch: Batch, generator: torch.Generator) -> int:
        """Differentiate the one loss of a batch, and return the number of predictions."""
        counted, labels = predicted_tokens(self.lm.task, batch)
        with self.lm.loaned_on_call():
            states = halves.run_body(batch)
        gradient = torch.zeros_like(states)
        places = counted.nonzero()
        size = max(1, LOGITS // _vocabulary_size(self.lm))
        # The word embedding is no longer on loan when the head is.
        with self.lm.loaned_on_call(keep=True):
            for number, part in enumerate(places.split(size)):
                rows, tokens = part.T
                leaf = states.detach()[rows, tokens].requires_grad_()
                values = halves.run_head(leaf)
                targets = None if labels is None else labels.split(size)[number]
                predictions = Predictions(values, rows, targets, self.lm.task.distribution)
                _token_loss(predictions, self.labels, generator).backward()
                assert leaf.grad is not None, "logits depend on the hidden states"
                gradient[rows, tokens] = leaf.grad
        states.backward(gradient)
        return len(places)


def divide(lm: LanguageModel, batches: Sequence[Batch], sites: Collection[Site] = ()) -> Halves | None:
    """Divide a model into body and head, if the logits of a batch are too many to be in memory at a time.

    Args:
        lm: the model.
        batches: its batches.
        sites: the layers that are measured; the head runs on whole batches if it is one of them, because a measurement
            needs to know which tokens are padding.

    Returns:
        None if the logits are few, or the model cannot be divided.

    Raises:
        UserError: the model cannot run.
    """
    if not batches or max(count_logits(lm, batch) for batch in batches) <= LOGITS:
        return None
    batch = batches[0]
    ids = batch["input_ids"][:1, :SHORT]
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.task is ModelTask.SEQ2SEQ:
        row[LABELS] = batch[LABELS][:1, :SHORT]
    halves = find_halves(lm, to_device(row, lm.device))
    if halves is None:
        return None
    # An encoder runs before the body, which is the decoder of some classes.
    encoder = lm.model.get_encoder().modules() if lm.model.config.is_encoder_decoder else ()
    body = {*halves.body.modules(), *encoder}
    return halves if all(place.module in body for site in sites for place in site.places) else None


def count_logits(lm: LanguageModel, batch: Batch) -> int:
    """The number of logits that a model has for a batch; 0 if it predicts no tokens."""
    if lm.task not in (ModelTask.CAUSAL, ModelTask.MASKED, ModelTask.SEQ2SEQ):
        return 0
    return batch[LABELS if lm.task is ModelTask.SEQ2SEQ else "input_ids"].numel() * _vocabulary_size(lm)


def _vocabulary_size(lm: LanguageModel) -> int:
    return (target_vocabulary_size if lm.task is ModelTask.SEQ2SEQ else vocabulary_size)(lm.model)
