"""Collate tokenized rows to batches, with right padding and the labels of the model's task."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate.row import IGNORED, Row
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.batch import CONTEXT_MASK, LABELS, POSITIONS
from laconic.model.embedding_modules import POOLING_MASK
from laconic.model.tokens import check_decoder_start, check_token_ids, pad_token_id, vocabulary_size


def pad_token(lm: LanguageModel) -> int:
    """Return the token id to pad with: the declared pad token, else the end token, else 0; padding is masked out."""
    size = vocabulary_size(lm.model)
    own = () if lm.tokenizer is None else (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id)
    candidates = (pad_token_id(lm), *own, 0)
    return next(token for token in candidates if isinstance(token, int) and 0 <= token < size)


def collate(lm: LanguageModel, rows: Sequence[Row]) -> Batch:
    """Pad rows on the right and stack them to one batch.

    Args:
        lm: the model that reads the batch.
        rows: tokenized rows, all with the same kind of labels and the same number of choices.

    Returns:
        `input_ids` and `attention_mask`, and `token_type_ids`, a pooling mask, a context mask and labels (for question
        answering `start_positions` and `end_positions`) where the rows have them.

    Raises:
        UserError: the model has no embedding for a token, or the configuration of a sequence-to-sequence model has no
            start token for the decoder.
    """
    sequences = [choice for row in rows for choice in row.choices] or rows
    check_token_ids(lm, (token for row in sequences for token in row.input_ids))
    check_decoder_start(lm)
    batch = {
        "input_ids": _pad([row.input_ids for row in sequences], pad_token(lm)),
        "attention_mask": _pad([[1] * len(row.input_ids) for row in sequences], 0),
    }
    if sequences[0].token_type_ids is not None:
        batch["token_type_ids"] = _pad([row.token_type_ids or [] for row in sequences], 0)
    if rows[0].choices:
        batch = {name: tensor.unflatten(0, (len(rows), -1)) for name, tensor in batch.items()}
    if any(row.unpooled for row in rows):
        pooled = [[int(at >= row.unpooled) for at in range(len(row.input_ids))] for row in rows]
        batch[POOLING_MASK] = _pad(pooled, 0)
    if rows[0].context is not None:
        batch[CONTEXT_MASK] = _pad([row.context or [] for row in rows], 0).bool()
    return batch | _collate_labels(lm, rows)


def _collate_labels(lm: LanguageModel, rows: Sequence[Row]) -> Batch:
    if rows[0].labels is None:
        return {}
    if isinstance(rows[0].labels, list):
        labels = [row.labels for row in rows if isinstance(row.labels, list)]
        if lm.task is not ModelTask.TOKEN_CLASSIFICATION:
            # The original tokens at masked positions are only in the labels.
            label_tokens = (token for tokens in labels for token in tokens if token != IGNORED)
            check_token_ids(lm, label_tokens, targets=lm.task is ModelTask.SEQ2SEQ)
        return {LABELS: _pad(labels, IGNORED)}
    values = torch.tensor([row.labels for row in rows])
    if rows[0].context is not None:
        return dict(zip(POSITIONS, values.T, strict=True))
    return {LABELS: values}


def _pad(sequences: Sequence[list[int]], fill: int) -> Tensor:
    width = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [fill] * (width - len(sequence)) for sequence in sequences])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a new batch with all tensors on `device`.

    Example:
        >>> to_device({"input_ids": torch.ones(1, 2)}, torch.device("meta"))["input_ids"].device.type
        'meta'
    """
    return {name: tensor.to(device) for name, tensor in batch.items()}
