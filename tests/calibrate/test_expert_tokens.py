"""Keys of the tokens that enter a layer of experts: they depend on the row of a batch alone."""

import pytest
import torch
from torch import Tensor

from laconic.calibrate.token_rows import expert_tokens
from laconic.model import Batch, InputTokens, ModelTask

ROWS, CHOICES, TOKENS = 5, 3, 9


def ids(*shape: int) -> Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(1))


def lengths(count: int) -> list[int]:
    return [TOKENS - number % 4 for number in range(count)]


def choices(padding: int) -> Batch:
    """Rows of three choices with different lengths."""
    tokens, mask = torch.zeros(2, ROWS, CHOICES, TOKENS + padding, dtype=torch.long)
    tokens[..., :TOKENS] = ids(ROWS, CHOICES, TOKENS)
    for number, length in enumerate(lengths(ROWS * CHOICES)):
        mask.view(-1, TOKENS + padding)[number, :length] = 1
    return {"input_ids": tokens * mask, "attention_mask": mask}


def pairs(padding: int) -> Batch:
    """Sources and targets of the same shape, with different padding."""
    source, mask = torch.zeros(2, ROWS, TOKENS + padding, dtype=torch.long)
    labels = torch.full_like(source, -100)
    for row, length in enumerate(lengths(ROWS)):
        mask[row, :length], labels[row, : length - 2] = 1, ids(ROWS, TOKENS)[row, : length - 2]
    source[:, :TOKENS] = ids(ROWS, TOKENS).flip(0)
    return {"input_ids": source * mask, "attention_mask": mask, "labels": labels}


def rows_of(batch: Batch, row: int, width: int) -> Batch:
    """One row alone, with its padding cut to `width`."""
    return {name: tensor[row : row + 1, ..., :width] for name, tensor in batch.items()}


def keys_of(task: ModelTask, batch: Batch, reads: InputTokens, number: int | None = None) -> list[int]:
    counted, keys = expert_tokens(task, batch, number or batch["input_ids"].numel(), reads)
    assert len(keys) == counted.sum()
    return sorted(keys.tolist())


@pytest.mark.parametrize(
    ("task", "make", "reads"),
    [
        (ModelTask.MULTIPLE_CHOICE, choices, InputTokens.SOURCE),
        (ModelTask.MULTIPLE_CHOICE, choices, InputTokens.EITHER),
        (ModelTask.SEQ2SEQ, pairs, InputTokens.SOURCE),
        (ModelTask.SEQ2SEQ, pairs, InputTokens.TARGET),
    ],
)
def test_keys_do_not_depend_on_the_batch_or_its_padding(task, make, reads):
    together = keys_of(task, make(4), reads)
    apart = [keys_of(task, rows_of(make(0), row, TOKENS), reads) for row in range(ROWS)]
    assert together == sorted(key for keys in apart for key in keys)
    assert len(set(together)) == len(together)


def test_a_decoder_has_the_keys_of_its_own_tokens():
    """Whether or not its tokens have the shape of those of the encoder."""
    batch = pairs(0)
    counted, keys = expert_tokens(ModelTask.SEQ2SEQ, batch, batch["labels"].numel(), InputTokens.TARGET)
    assert torch.equal(counted, batch["labels"] != -100)
    other = batch | {"input_ids": batch["input_ids"] + 1}
    assert keys_of(ModelTask.SEQ2SEQ, other, InputTokens.TARGET) == sorted(keys.tolist())
    assert keys_of(ModelTask.SEQ2SEQ, other, InputTokens.SOURCE) != keys_of(
        ModelTask.SEQ2SEQ, batch, InputTokens.SOURCE
    )


def test_vectors_that_are_no_tokens_have_keys_of_their_row():
    """They differ from row to row, and from one vector to the next."""
    batch, vectors = pairs(2), 7
    together = keys_of(ModelTask.CAUSAL, batch, InputTokens.OWN, ROWS * vectors)
    apart = [keys_of(ModelTask.CAUSAL, rows_of(pairs(0), row, TOKENS), InputTokens.OWN, vectors) for row in range(ROWS)]
    assert together == sorted(key for keys in apart for key in keys)
    assert len(set(together)) == ROWS * vectors
    # Vectors that all rows share have the keys of the whole batch.
    counted, keys = expert_tokens(ModelTask.CAUSAL, batch, ROWS * vectors + 1, InputTokens.OWN)
    assert counted.shape == (1, ROWS * vectors + 1) and len(keys.unique()) == len(keys)
