"""The rows of a layer's input that are tokens, and the keys of these tokens; the other rows are padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.reservoir import sequence_digests, token_keys
from laconic.model import Batch, InputTokens, ModelTask, token_masks
from laconic.model.batch import LABELS, flatten_choices

Mask = Bool[Tensor, "sequences tokens"]


@dataclass(frozen=True)
class TokenRows:
    """Marks the rows of a layer's input that are tokens; the others are padding.

    Args:
        counted: (sequences, tokens), True at tokens, False at padding.
        tokens_first: the layer's input has the shape (tokens, sequences, width).
    """

    counted: Mask
    tokens_first: bool

    def lines(self, x: Tensor) -> Tensor:
        """Reshape a layer's input or output to (sequences, tokens, width)."""
        x = x.transpose(0, 1) if self.tokens_first else x
        return x.reshape(*self.counted.shape, x.shape[-1])

    @cached_property
    def is_complete(self) -> bool:
        """True if there is no padding, so that `without_padding` need not copy."""
        return bool(self.counted.all())

    def without_padding(self, lines: Tensor) -> Tensor:
        """Return the rows without padding.

        Args:
            lines: (sequences, tokens, width), or token ids (sequences, tokens).

        Returns:
            (tokens, width), or token ids (tokens,).
        """
        return lines.flatten(0, 1) if self.is_complete else lines[self.counted]

    def tokens(self, x: Tensor) -> Tensor:
        """Reshape token ids to (sequences, tokens)."""
        return x.reshape(self.counted.shape)


def token_rows(shape: Sequence[int], reads: InputTokens, tokens_first: bool, source: Mask, target: Mask) -> TokenRows:
    """Find out which rows of a layer's input are padding.

    Args:
        shape: shape of the input without its last dimension.
        reads: whether the layer reads source tokens, target tokens, either, or vectors of its own (such as positions).
        tokens_first: the input has tokens in its first dimension.
        source: (sequences, tokens), True at source tokens that are no padding.
        target: the same for target tokens; equal to `source` unless the model is an encoder-decoder.
    """
    leading = (shape[1], shape[0], *shape[2:]) if tokens_first else tuple(shape)
    reads = _input_tokens(leading, reads, source, target)
    mask = target if reads is InputTokens.TARGET else source
    return TokenRows(_all_rows(leading, mask) if reads is InputTokens.OWN else _mask_rows(leading, mask), tokens_first)


def batch_rows(
    task: ModelTask, batch: Batch, shape: Sequence[int], reads: InputTokens, tokens_first: bool = False
) -> TokenRows:
    """Find out which rows of a layer's input are padding, with one sequence for each row of a batch.

    Args:
        task: the task of the model.
        batch: the batch that the model reads.
        shape: as in `token_rows`.
        reads: as in `token_rows`.
        tokens_first: as in `token_rows`.

    Example:
        >>> choices = {"input_ids": torch.ones(2, 3, 5), "attention_mask": torch.ones(2, 3, 5)}
        >>> batch_rows(ModelTask.MULTIPLE_CHOICE, choices, (6, 5), InputTokens.SOURCE).counted.shape
        torch.Size([2, 15])
    """
    found = token_rows(shape, reads, tokens_first, *token_masks(task, batch))
    number = len(batch["input_ids"])
    # The choices of a row share one prediction, so that their tokens are one sequence.
    return replace(found, counted=found.counted.reshape(number, -1)) if len(found.counted) > number else found


def expert_tokens(task: ModelTask, batch: Batch, number: int, reads: InputTokens) -> tuple[Mask, Int[Tensor, " kept"]]:
    """Find out which of the tokens that enter a layer of experts are no padding, and their keys.

    A key depends on the row of the batch alone, not on its padding or on the other rows.

    Args:
        task: the task of the model.
        batch: the batch that the model reads.
        number: the number of tokens that enter the layer, which are those of all sequences.
        reads: whether the layer reads source tokens, target tokens, either, or vectors of its own.

    Returns:
        The mask, (sequences, tokens), True at tokens; and the keys (`laconic.calibrate.reservoir.token_keys`).

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> counted, keys = expert_tokens(ModelTask.CAUSAL, batch, 3, InputTokens.SOURCE)
        >>> counted.tolist(), keys.shape
        ([[True, True, False]], torch.Size([2]))
    """
    counted = batch_rows(task, batch, (number,), reads).counted
    masks = token_masks(task, batch)
    is_target = _input_tokens((number,), reads, *masks) is InputTokens.TARGET
    mask = masks[1 if is_target else 0]
    ids = flatten_choices(batch[LABELS if is_target and task is ModelTask.SEQ2SEQ else "input_ids"])
    if reads is not InputTokens.OWN and number == mask.numel():
        return counted, token_keys(ids.reshape(counted.shape), counted)
    # Other vectors have no ids of their own, so the tokens of their row stand for them.
    rows = len(batch["input_ids"])
    digests = sequence_digests(ids.reshape(rows, -1), mask.reshape(rows, -1))
    if len(counted) != rows:
        digests = digests.sum(0, keepdim=True)
    return counted, token_keys(digests[:, None].expand(counted.shape), counted)


def _input_tokens(shape: tuple[int, ...], reads: InputTokens, source: Mask, target: Mask) -> InputTokens:
    """Replace EITHER by the tokens whose number fits to the shape of a layer's input."""
    if reads is not InputTokens.EITHER:
        return reads
    return InputTokens.TARGET if _fits(shape, target) or not _fits(shape, source) else InputTokens.SOURCE


def _fits(shape: tuple[int, ...], mask: Mask) -> bool:
    return shape[:2] == tuple(mask.shape) or shape == (mask.numel(),)


def _mask_rows(shape: tuple[int, ...], mask: Mask) -> Mask:
    """The rows of an input of this shape that are tokens; all rows if they are no tokens of the batch."""
    if shape == (mask.numel(),):
        return mask
    if len(shape) == 1 or shape[0] != len(mask) or shape[1] < mask.shape[1]:
        return _all_rows(shape, mask)
    # A model may pad its rows further, on the right, to a multiple of its attention window.
    mask = functional.pad(mask, (0, shape[1] - mask.shape[1]), value=False)
    return mask.reshape(*mask.shape, *(1 for _ in shape[2:])).expand(shape).reshape(len(mask), -1)


def _all_rows(shape: tuple[int, ...], mask: Mask) -> Mask:
    """All rows count. Pooled vectors are sequences of one; an input shared by the batch (positions) is one sequence."""
    number = torch.Size(shape).numel()
    sequences = 1 if shape[0] == 1 or number % len(mask) else len(mask)
    return torch.ones(sequences, number // sequences, dtype=torch.bool, device=mask.device)
