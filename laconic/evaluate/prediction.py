"""Compute predictions batch by batch, without gradients, with rows sorted by length and a check for NaN.

`predict_labelled` runs the head of a language model only at labelled positions: the head is the largest matrix of a
small model, and many tasks need few positions. For encoder-decoders, and models whose head is not a separate module, it
computes all positions.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from laconic.calibrate.batching import IGNORED, Row, at_once, collate
from laconic.calibrate.passes import evaluating
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, predict
from laconic.model.predictions import gather_predictions, run_model
from laconic.model.tokens import vocabulary_size
from laconic.numerics.moments import check_finite
from laconic.progress import Track


def predict_labelled(
    lm: LanguageModel, batches: Sequence[Batch], track: Track, what: str
) -> Iterator[tuple[Batch, Predictions]]:
    """Yield each batch with the predictions at its labelled positions, both on the CPU.

    Args:
        lm: the model.
        batches: inputs. For a language model they contain labels, which are `IGNORED` at positions that are not needed.
        track: reports progress.
        what: a description of the work, for progress.
    """
    with evaluating(lm):
        for batch in track(batches, what):
            yield batch, to_cpu(_predict(lm, batch))


@torch.inference_mode()
def _predict(lm: LanguageModel, batch: Batch) -> Predictions:
    head = lm.model.get_output_embeddings()
    if lm.task not in (ModelTask.MASKED, ModelTask.CAUSAL) or not isinstance(head, nn.Module):
        return predict_batch(lm, batch)[0]
    batch = to_device(batch, lm.device)
    true = (
        batch["labels"]
        if lm.task is ModelTask.MASKED
        else functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    )
    counted = true != IGNORED

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][counted], *inputs[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        output = run_model(lm, batch)
    finally:
        hook.remove()
    if output["logits"].dim() == 3:
        # The model used the weight of the head without calling the module, so that the hook did not run.
        predictions = gather_predictions(lm, output, batch)
    else:
        predictions = Predictions(output["logits"], counted.nonzero()[:, 0], true[counted], lm.task.distribution)
    check_predictions(lm, predictions)
    return predictions


MAX_LOGITS = 2**26
"""The largest number of logits in a batch: 256 MiB in float32."""


def predict_batches(
    lm: LanguageModel, batches: Sequence[Batch], track: Track, what: str
) -> Iterator[tuple[Batch, Predictions]]:
    """Yield each batch with its predictions, both on the CPU.

    Args:
        lm: the model.
        batches: its inputs.
        track: shows progress.
        what: the name of the work, for progress.
    """
    with evaluating(lm):
        for batch in track(batches, what):
            yield batch, to_cpu(predict_batch(lm, batch)[0])


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
    check_predictions(lm, predictions)
    return predictions, pooled


def check_predictions(lm: LanguageModel, predictions: Predictions) -> None:
    """Raise UserError if a prediction is NaN or infinite."""
    check_finite(
        predictions.values,
        f"The model '{lm.source}' predicts NaN or infinite values; it is broken or out of its range.",
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def to_cpu(predictions: Predictions) -> Predictions:
    """The predictions with their tensors on the CPU."""
    values, rows, labels, distribution = predictions
    return Predictions(values.cpu(), rows.cpu(), None if labels is None else labels.cpu(), distribution)


def rows_per_batch(lm: LanguageModel, length: int, most: int) -> int:
    """The number of rows in a batch.

    Args:
        lm: the model. If it predicts every token, a batch has at most `MAX_LOGITS` logits.
        length: the number of tokens in a row.
        most: the largest number of rows.
    """
    if lm.task not in (ModelTask.CAUSAL, ModelTask.MASKED, ModelTask.SEQ2SEQ):
        return at_once(lm, most)
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
    return lines[torch.tensor([at for part in parts for at in part]).argsort()]
