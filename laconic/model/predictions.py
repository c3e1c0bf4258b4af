"""Run a model on a batch and gather its predictions as parameters of a distribution.

Predictions of classes and tokens are logits of a categorical distribution; those of a multi-label model are logits of
one Bernoulli distribution per label. Regression and plain encoders predict the mean of a Gaussian with unit variance: a
score, or the vector of a text. So every task has a KL divergence in nats and a Fisher information
(`laconic.numerics.distributions`).

Some configurations build a model that cannot run, such as four query heads with three key heads; only a forward pass
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
from laconic.model.task import ModelTask
from laconic.numerics.distributions import Distribution


class ModelRunError(UserError):
    """A model cannot run a batch.

    Args:
        sentence: the error as the user sees it.
        reason: the message of the exception that the model raised.
    """

    # Unpickling calls the constructor with the sentence only, and sets the attributes afterwards.
    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def report_run_errors(lm: LanguageModel, ids: Int[Tensor, "rows tokens"], *, writes: bool = False) -> Iterator[None]:
    """A context in which `lm` runs; exceptions of its class become one sentence.

    Exceptions of laconic's own code inside the model (a format or a hook) and out-of-memory errors pass unchanged.

    Args:
        lm: the model.
        ids: the input tokens.
        writes: whether it generates text after them.

    Raises:
        ModelRunError: the code of the model's class, or torch within it, raised an exception.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except MODEL_ERRORS as error:
        if _is_laconic_error(error):
            raise
        rows, tokens = ids.shape
        size = f"{rows} row{'' if rows == 1 else 's'} of {tokens} token{'' if tokens == 1 else 's'}"
        name, reason = _model_name(lm), reason_of(error)
        if writes:
            sentence = (
                f"{name} cannot write after {size}: {reason}; look at its generation_config.json and its config.json."
            )
        elif isinstance(error, IndexError):
            # An embedding has no row for a token or a position.
            sentence = f"{name} cannot read {size}: {reason}; its tokenizer or its number of positions does not fit it."
        else:
            sentence = (
                f"{name} cannot run {size}: {reason}; look at its config.json, where numbers such as those of heads, "
                "experts and positions have to go together."
            )
        raise ModelRunError(sentence, reason) from error


def check_named(lm: LanguageModel, output: ModelOutput | tuple[object, ...]) -> ModelOutput:
    """Check that the outputs of a forward pass have names, and return them.

    Raises:
        UserError: they are a bare tuple.
    """
    if isinstance(output, tuple):
        raise UserError(
            f"{_model_name(lm)} gives its outputs without names; set return_dict of its configuration to true."
        )
    return output


def _model_name(lm: LanguageModel) -> str:
    return f"The model '{lm.source}'" if lm.source else "The model"


def _is_laconic_error(error: BaseException) -> bool:
    """Whether code of laconic that the model called, such as a format, raised `error`."""
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return "laconic" in dropwhile(lambda package: package == "laconic", packages)


Batch = dict[str, Tensor]
"""The inputs of a model for one batch, by name.

`input_ids` and `attention_mask` are (rows, tokens). `labels` exist if the task or the data has them; −100 is ignored.
`pooling_mask` (rows, tokens) exists if vectors are pooled from some tokens only: a prompt may be left out.
"""


class Predictions(NamedTuple):
    """The predictions for one batch.

    Args:
        values: parameters of the distribution, one row per prediction: logits, or a mean.
        rows: the row of the batch that each prediction belongs to.
        labels: the true class, token, labels or values of each prediction; None if the batch has none.
        distribution: the distribution with these parameters.
    """

    values: Float[Tensor, "n k"]
    rows: Int[Tensor, " n"]
    labels: Tensor | None
    distribution: Distribution


def predict(lm: LanguageModel, batch: Batch, hidden: bool = False) -> tuple[Predictions, Float[Tensor, "rows d"]]:
    """Run the model and gather its predictions at all positions except padding.

    Gradients flow through the predictions when they are enabled.

    Args:
        lm: the model.
        batch: one batch, on the device of the model.
        hidden: whether hidden states are needed.

    Returns:
        The predictions, and for each row the mean of the last hidden states over its tokens, without gradient. The
        second has zero rows if `hidden` is False; for a plain encoder it contains the vectors themselves.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
        >>> lm = LanguageModel.of(BertForSequenceClassification(config).eval())
        >>> batch = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        >>> predictions, states = predict(lm, batch, hidden=True)
        >>> predictions.values.shape, states.shape
        (torch.Size([1, 2]), torch.Size([1, 8]))
    """
    embedding = lm.task is ModelTask.EMBEDDING
    output = run_model(lm, batch, **({} if embedding else {"output_hidden_states": hidden}))
    predictions = gather_predictions(lm, output, batch)
    if embedding:
        return predictions, predictions.values.detach()
    if not hidden:
        return predictions, predictions.values.new_zeros(0, 1)
    # The predictions of an encoder-decoder come from its decoder.
    states = (output.get("decoder_hidden_states") or output["hidden_states"])[-1]
    mask = batch["labels"] != -100 if lm.task is ModelTask.SEQ2SEQ else batch["attention_mask"].bool()
    weights = mask[..., None].to(states.dtype)
    return predictions, ((states * weights).sum(1) / weights.sum(1).clamp(min=1)).detach()


def run_model(lm: LanguageModel, batch: Batch, **options: bool) -> ModelOutput:
    """Run the model on a batch.

    Args:
        lm: the model.
        batch: one batch.
        **options: requests for more outputs, such as `output_attentions=True`.

    Raises:
        UserError: the model cannot run the batch, or gives its outputs without names.
    """
    unused = {POOLING_MASK} if lm.task is ModelTask.SEQ2SEQ else {POOLING_MASK, "labels"}
    inputs = {name: tensor for name, tensor in batch.items() if name not in unused}
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token_mask(batch["input_ids"])
    if lm.task is ModelTask.EMBEDDING and lm.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"]
    caching = {"use_cache": False} if lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ) else {}
    with report_run_errors(lm, batch["input_ids"]):
        return check_named(lm, lm.model(**inputs, **options, **caching))


def gather_predictions(lm: LanguageModel, output: ModelOutput, batch: Batch) -> Predictions:
    """Gather the predictions from an output of `run_model` for `batch`."""
    if lm.task is ModelTask.EMBEDDING:
        vectors = lm.embedding_pipeline(output["last_hidden_state"], batch["attention_mask"], batch.get(POOLING_MASK))
        return Predictions(vectors, _row_numbers(vectors), None, lm.task.distribution)
    return _gather(lm.task, output["logits"], batch)


def first_token_mask(input_ids: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """The `global_attention_mask` with which Longformer and LED are run: only the first token is global."""
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return mask


def _gather(task: ModelTask, logits: Tensor, batch: Batch) -> Predictions:
    labels = batch.get("labels")
    if task.is_sequence_classification:
        return Predictions(logits, _row_numbers(logits), labels, task.distribution)
    if task is ModelTask.CAUSAL:
        is_counted, targets, logits = _next_tokens(batch), batch["input_ids"][:, 1:], logits[:, :-1]
    else:
        assert labels is not None, "masked and sequence-to-sequence batches carry labels"
        is_counted, targets = labels != -100, labels
    rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(is_counted)
    return Predictions(logits[is_counted], rows[is_counted], targets[is_counted], task.distribution)


def _next_tokens(batch: Batch) -> Bool[Tensor, "rows t-1"]:
    """True at positions whose next token is no padding and has no label of −100 (as in overlapping windows)."""
    is_counted = batch["attention_mask"][:, 1:].bool() & batch["attention_mask"][:, :-1].bool()
    labels = batch.get("labels")
    return is_counted if labels is None else is_counted & (labels[:, 1:] != -100)


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
