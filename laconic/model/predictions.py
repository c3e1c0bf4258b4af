"""Run a model on a batch and gather its predictions, as parameters of one distribution whatever its task.

Classes and tokens are logits of a categorical distribution, the labels of a multi-label model logits of one Bernoulli
each. Regression and plain encoders give the mean of a Gaussian with unit variance: scores, or the vector of a text. So
every task has a KL divergence in nats and a Fisher information (`laconic.numerics.distributions`).

Some configurations build a model that cannot run, such as four query heads over three key heads; only a forward pass
shows it. All code that runs a model does so within `report_run_errors`, which turns the exception into one sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from traceback import walk_tb
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.utils.generic import ModelOutput

from laconic.errors import UserError, reason_of
from laconic.model.embedding_modules import POOLING_MASK
from laconic.model.lm import LanguageModel
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import Task
from laconic.numerics.distributions import Distribution


class ModelRunError(UserError):
    """A model cannot run a batch.

    Args:
        sentence: the error as the user sees it.
        reason: the message of the exception that the model raised.
    """

    # A process that hands it to another makes it of the sentence alone, and puts the rest in afterwards.
    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def report_run_errors(lm: LanguageModel, ids: Int[Tensor, "rows tokens"], *, writes: bool = False) -> Iterator[None]:
    """A context in which `lm` runs; exceptions of its class become one sentence.

    Exceptions of laconic's own code called by the model, as in a format or a hook, and a lack of memory pass unchanged.

    Args:
        lm: the model.
        ids: the tokens that it reads.
        writes: it generates text after them.

    Raises:
        ModelRunError: the code of the model's class, or torch within it, raised an exception.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except MODEL_ERRORS as error:
        if _is_ours(error):
            raise
        rows, tokens = ids.shape
        size = f"{rows} row{'' if rows == 1 else 's'} of {tokens} token{'' if tokens == 1 else 's'}"
        who, reason = _called(lm), reason_of(error)
        if writes:
            sentence = (
                f"{who} cannot write after {size}: {reason}; look at its generation_config.json and its config.json."
            )
        elif isinstance(error, IndexError):
            # An embedding was asked for a row that it does not have.
            sentence = f"{who} cannot read {size}: {reason}; its tokenizer or its number of positions does not fit it."
        else:
            sentence = (
                f"{who} cannot run {size}: {reason}; look at its config.json, where numbers such as those of heads, "
                "experts and positions have to go together."
            )
        raise ModelRunError(sentence, reason) from error


def check_named(lm: LanguageModel, output: ModelOutput | tuple[object, ...]) -> ModelOutput:
    """Check that the outputs of a forward pass have names, and return them.

    Raises:
        UserError: they are a bare tuple.
    """
    if isinstance(output, tuple):
        raise UserError(f"{_called(lm)} gives its outputs without names; set return_dict of its configuration to true.")
    return output


def _called(lm: LanguageModel) -> str:
    return f"The model '{lm.source}'" if lm.source else "The model"


def _is_ours(error: BaseException) -> bool:
    """Whether code of laconic that the model called raised `error`."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    called = dropwhile(_is_laconic, modules)
    return any(map(_is_laconic, called))


def _is_laconic(module: str) -> bool:
    return module.partition(".")[0] == "laconic"


Batch = dict[str, Tensor]
"""`input_ids` and `attention_mask` (rows, tokens), `labels` where the task or the data has them; −100 is ignored.

`pooling_mask` (rows, tokens) where a vector is not made of all the tokens of its row: a prompt may stand before them.
"""


class Predictions(NamedTuple):
    """The predictions for one batch.

    Args:
        values: parameters of the distribution, one row per prediction: logits, or a mean.
        rows: the row of the batch that each prediction belongs to.
        labels: the true class, token, labels or values of each prediction; None where the batch has none.
        distribution: what the values parameterise.
    """

    values: Float[Tensor, "n k"]
    rows: Int[Tensor, " n"]
    labels: Tensor | None
    distribution: Distribution


def predict(lm: LanguageModel, batch: Batch, hidden: bool = False) -> tuple[Predictions, Float[Tensor, "rows d"]]:
    """Run the model and gather its predictions at every position that is not padding.

    Gradients flow through the predictions when they are enabled.

    Args:
        lm: the model.
        batch: one batch, on the device of the model.
        hidden: whether hidden states are needed.

    Returns:
        The predictions, and for each row the mean of the last hidden states over its tokens, without gradient. The
        second has zero rows where `hidden` is False; for a plain encoder it is the vectors themselves.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
        >>> lm = LanguageModel.of(BertForSequenceClassification(config).eval())
        >>> batch = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        >>> predictions, states = predict(lm, batch, hidden=True)
        >>> predictions.values.shape, states.shape
        (torch.Size([1, 2]), torch.Size([1, 8]))
    """
    embedding = lm.task is Task.EMBEDDING
    output = run_model(lm, batch, **({} if embedding else {"output_hidden_states": hidden}))
    predictions = gather_predictions(lm, output, batch)
    if embedding:
        return predictions, predictions.values.detach()
    if not hidden:
        return predictions, predictions.values.new_zeros(0, 1)
    return predictions, _pool(_last_hidden(output), _state_mask(lm, batch)).detach()


def run_model(lm: LanguageModel, batch: Batch, **asked: bool) -> ModelOutput:
    """Run the model on a batch.

    Args:
        lm: the model.
        batch: one batch.
        **asked: more outputs, by transformers' names, as `output_attentions=True`.

    Raises:
        UserError: the model cannot run the batch, or gives its outputs without names.
    """
    unread = {POOLING_MASK} if lm.task is Task.SEQ2SEQ else {POOLING_MASK, "labels"}
    inputs = {name: tensor for name, tensor in batch.items() if name not in unread}
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token_mask(batch["input_ids"])
    if lm.task is Task.EMBEDDING and lm.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"]
    caching = {"use_cache": False} if lm.task in (Task.CAUSAL, Task.SEQ2SEQ) else {}
    with report_run_errors(lm, batch["input_ids"]):
        return check_named(lm, lm.model(**inputs, **asked, **caching))


def gather_predictions(lm: LanguageModel, output: ModelOutput, batch: Batch) -> Predictions:
    """Gather the predictions from an output of `run_model` for `batch`."""
    if lm.task is Task.EMBEDDING:
        vectors = lm.embedding_pipeline(output["last_hidden_state"], batch["attention_mask"], batch.get(POOLING_MASK))
        return Predictions(vectors, _row_numbers(vectors), None, lm.task.distribution)
    return _gather(lm.task, output["logits"], batch)


def first_token_mask(input_ids: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """The `global_attention_mask` with which Longformer and LED are run: only the first token is global."""
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return mask


def _gather(task: Task, logits: Tensor, batch: Batch) -> Predictions:
    labels = batch.get("labels")
    if task.is_sequence_classification:
        return Predictions(logits, _row_numbers(logits), labels, task.distribution)
    if task is Task.CAUSAL:
        counted, targets, logits = _next_tokens(batch), batch["input_ids"][:, 1:], logits[:, :-1]
    else:
        assert labels is not None, "masked and sequence-to-sequence batches carry labels"
        counted, targets = labels != -100, labels
    rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(counted)
    return Predictions(logits[counted], rows[counted], targets[counted], task.distribution)


def _next_tokens(batch: Batch) -> Bool[Tensor, "rows t-1"]:
    """Positions whose next token is no padding; labels of −100 exclude more, as overlapping windows do."""
    counted = batch["attention_mask"][:, 1:].bool() & batch["attention_mask"][:, :-1].bool()
    labels = batch.get("labels")
    return counted if labels is None else counted & (labels[:, 1:] != -100)


def _last_hidden(output: ModelOutput) -> Tensor:
    # An encoder-decoder has both, and its predictions come from the decoder.
    states = output.get("decoder_hidden_states") or output["hidden_states"]
    return states[-1]


def _state_mask(lm: LanguageModel, batch: Batch) -> Tensor:
    return batch["labels"] != -100 if lm.task is Task.SEQ2SEQ else batch["attention_mask"].bool()


def _pool(hidden: Float[Tensor, "rows t d"], mask: Tensor) -> Float[Tensor, "rows d"]:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _row_numbers(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device)


def divergence(reference: Predictions, other: Predictions) -> Float[Tensor, " n"]:
    """The KL divergence of each prediction from the reference.

    Args:
        reference: predictions of the original model.
        other: predictions of another model for the same batch.

    Returns:
        KL(reference ‖ other) in nats, one number per prediction.
    """
    return reference.distribution.divergence(reference.values.double(), other.values.double())
