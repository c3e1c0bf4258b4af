"""A batch of inputs by name, the masks of its tokens, and the inputs that a model reads.

A row is one example. It is one sequence of tokens, or several for multiple choice, where each choice is a sequence of
its own: `input_ids` is then (rows, choices, tokens). Models flatten rows and choices into one axis, and so do the masks
here, so "sequences" are the rows of a hidden state.
"""

from jaxtyping import Bool, Int
from torch import Tensor

from laconic.model.embedding_modules import POOLING_MASK
from laconic.model.lm import LanguageModel
from laconic.model.task import ModelTask

Batch = dict[str, Tensor]
"""The inputs of a model for one batch, by name.

`input_ids` and `attention_mask` are (rows, tokens), or (rows, choices, tokens) for multiple choice. `labels` exist if
the task or the data has them; −100 is ignored. For token classification they are (rows, tokens). Question answering has
`start_positions` and `end_positions` (rows,) in their place, and may have a `context_mask` (rows, tokens), which is
True at the tokens that an answer may begin or end at. `pooling_mask` (rows, tokens) exists if vectors are pooled from
some tokens only: a prompt may be left out.
"""

LABELS, CONTEXT_MASK = "labels", "context_mask"
POSITIONS = ("start_positions", "end_positions")


def inputs_to_read(task: ModelTask, batch: Batch) -> Batch:
    """The entries of a batch that a model reads: labels are left out, except those of an encoder-decoder.

    The decoder of a sequence-to-sequence model reads the labels as its inputs.

    Args:
        task: the task of the model.
        batch: one batch.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.ones(1, 2), "labels": torch.ones(1)}
        >>> list(inputs_to_read(ModelTask.CLASSIFICATION, batch))
        ['input_ids']
    """
    unread = {POOLING_MASK, CONTEXT_MASK, *POSITIONS}
    if task is not ModelTask.SEQ2SEQ:
        unread.add(LABELS)
    return {name: tensor for name, tensor in batch.items() if name not in unread}


def token_masks(
    task: ModelTask, batch: Batch
) -> tuple[Bool[Tensor, "sequences source"], Bool[Tensor, "sequences target"]]:
    """Masks of the source and the target tokens of each sequence, True where there is no padding.

    Args:
        task: the task of the model. The two masks differ for a sequence-to-sequence model only.
        batch: one batch.

    Example:
        >>> import torch
        >>> source, _ = token_masks(ModelTask.MULTIPLE_CHOICE, {"attention_mask": torch.ones(2, 3, 5)})
        >>> source.shape
        torch.Size([6, 5])
    """
    source = batch["attention_mask"].bool()
    target = batch[LABELS] != -100 if task is ModelTask.SEQ2SEQ else source
    return flatten_choices(source), flatten_choices(target)


def flatten_choices(tensor: Tensor) -> Tensor:
    """Flatten all axes but the last into one: (rows, choices, tokens) becomes (sequences, tokens)."""
    return tensor.reshape(-1, tensor.shape[-1])


def first_token_mask(input_ids: Int[Tensor, "*rows tokens"]) -> Int[Tensor, "*rows tokens"]:
    """A mask that is 1 at the first token of each sequence."""
    mask = input_ids.new_zeros(input_ids.shape)
    mask[..., 0] = 1
    return mask


def global_token_mask(lm: LanguageModel, input_ids: Int[Tensor, "*rows tokens"]) -> Int[Tensor, "*rows tokens"]:
    """The `global_attention_mask` with which Longformer and LED are run: only the first token is global.

    For question answering all tokens of the question, which ends at the first separator, are global too, as in
    transformers' own class.

    Args:
        lm: the model; its configuration has the separator.
        input_ids: the tokens.
    """
    separator = getattr(lm.model.config, "sep_token_id", None)
    if lm.task is not ModelTask.QUESTION_ANSWERING or separator is None:
        return first_token_mask(input_ids)
    is_separator = input_ids == separator
    is_question = (is_separator.cumsum(-1) == 0) & is_separator.any(-1, keepdim=True)
    return first_token_mask(input_ids) | is_question.to(input_ids.dtype)
