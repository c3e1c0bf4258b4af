"""Compute predictions batch by batch, without gradients, with rows sorted by length and a check for NaN."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from laconic.calibrate.batching import limit_batch_size
from laconic.calibrate.collation import collate, to_device
from laconic.calibrate.passes import evaluating
from laconic.calibrate.row import IGNORED, Row
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, predict
from laconic.model.predictions import gather_predictions, run_model
from laconic.model.tokens import vocabulary_size
from laconic.numerics.moments import check_finite
from laconic.progress import Track

MAX_LOGITS = 2**26
"""The largest number of logits in a batch: 256 MiB in float32."""
COMPARED_LOGITS = 2**24
"""The largest number of logits that are compared at a time: 64 MiB in float32."""


def predict_batches(
    lm: LanguageModel, batches: Sequence[Batch], track: Track, label: str, *, labelled_only: bool = False
) -> Iterator[tuple[Batch, Predictions]]:
    """Yield each batch with its predictions, both on the CPU.

    Args:
        lm: the model.
        batches: its inputs.
        track: shows progress.
        label: a description of the work, for progress.
        labelled_only: whether to run the head of a language model only at labelled positions. The head is the largest
            matrix of a small model, and many tasks need few positions. Encoder-decoders, and models whose head is not a
            separate module, compute all positions.

    Raises:
        UserError: a prediction is NaN or infinite.
    """
    run = _predict_labelled if labelled_only else predict_batch
    with evaluating(lm):
        for batch in track(batches, label):
            values, rows, labels, distribution, possible = run(lm, batch)[0]
            labels, possible = (None if part is None else part.cpu() for part in (labels, possible))
            yield batch, Predictions(values.cpu(), rows.cpu(), labels, distribution, possible)


@torch.inference_mode()
def predict_batch(lm: LanguageModel, batch: Batch, hidden: bool = False) -> tuple[Predictions, Tensor]:
    """Compute the predictions for one batch without gradients. The results are on the device of the model.

    Args:
        lm: the model.
        batch: its inputs.
        hidden: whether to return the mean last hidden states as well.

    Returns:
        The predictions, and (rows, width) mean hidden states, which are empty without `hidden`.

    Raises:
        UserError: a prediction is NaN or infinite.
    """
    predictions, pooled = predict(lm, to_device(batch, lm.device), hidden)
    _check_finite(lm, predictions)
    return predictions, pooled


@torch.inference_mode()
def _predict_labelled(lm: LanguageModel, batch: Batch) -> tuple[Predictions, Tensor]:
    head = lm.model.get_output_embeddings()
    if lm.task not in (ModelTask.MASKED, ModelTask.CAUSAL) or not isinstance(head, nn.Module):
        return predict_batch(lm, batch)
    batch = to_device(batch, lm.device)
    labels = batch["labels"]
    if lm.task is ModelTask.CAUSAL:
        labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    labelled = labels != IGNORED

    def select_labelled(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][labelled], *inputs[1:])

    hook = head.register_forward_pre_hook(select_labelled)
    try:
        output = run_model(lm, batch)
    finally:
        hook.remove()
    if output["logits"].dim() == 3:
        # The model used the weight of the head without calling the module, so that the hook did not run.
        predictions = gather_predictions(lm, output, batch)
    else:
        predictions = Predictions(output["logits"], labelled.nonzero()[:, 0], labels[labelled], lm.task.distribution)
    _check_finite(lm, predictions)
    return predictions, torch.empty(0)


def _check_finite(lm: LanguageModel, predictions: Predictions) -> None:
    sentence = f"The model '{lm.source}' predicts NaN or infinite values; it is broken or out of its range."
    check_finite(predictions.possible_values, sentence)


def rows_per_batch(lm: LanguageModel, length: int, most: int) -> int:
    """The number of rows in a batch.

    Args:
        lm: the model. If it predicts every token, a batch has at most `MAX_LOGITS` logits.
        length: the number of tokens in a row.
        most: the largest number of rows.
    """
    if lm.task not in (ModelTask.CAUSAL, ModelTask.MASKED, ModelTask.SEQ2SEQ):
        return limit_batch_size(lm, most)
    return max(1, min(most, MAX_LOGITS // (length * vocabulary_size(lm.model))))


def batch_by_length(lm: LanguageModel, rows: Sequence[Row], most: int) -> tuple[list[list[int]], list[Batch]]:
    """Sort rows by length and form batches, so that they need little padding.

    Args:
        lm: the model.
        rows: tokens and labels.
        most: the largest number of rows in a batch.

    Returns:
        The indices of the rows in each batch, and the batches.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    size = rows_per_batch(lm, max((len(row.input_ids) for row in rows), default=1), most)
    parts = [order[index : index + size] for index in range(0, len(order), size)]
    return parts, [collate(lm, [rows[index] for index in part]) for part in parts]


def restore_order(lines: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """Restore the original order of rows after `batch_by_length`.

    Args:
        lines: (rows, ...) results of all batches, concatenated.
        parts: the indices of the rows in each batch.

    Example:
        >>> restore_order(torch.tensor([30, 10, 20]), [[2, 0], [1]]).tolist()
        [10, 20, 30]
    """
    return lines[torch.tensor([index for part in parts for index in part]).argsort()]
