"""Run a model on a batch and gather its predictions as parameters of a distribution.

Predictions of classes, tokens and choices are logits of a categorical distribution; those of a multi-label model are
logits of one Bernoulli distribution per label. An answer has two predictions, the categorical distributions of its
first and of its last token; tokens that no answer may begin or end at have a logit of −∞. Regression and plain encoders
predict the mean of a Gaussian with unit variance: a score, or the vector of a text. So every task has a KL divergence
in nats and a Fisher information (`laconic.numerics.distributions`).

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
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.utils.generic import ModelOutput

from laconic.errors import UserError, reason_of
from laconic.model.batch import CONTEXT_MASK, LABELS, POSITIONS, Batch, global_token_mask, inputs_to_read, token_masks
from laconic.model.embedding_modules import POOLING_MASK
from laconic.model.lm import LanguageModel
from laconic.model.stock import MODEL_ERRORS, reset_attention_type
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
def report_run_errors(lm: LanguageModel, ids: Int[Tensor, "*rows tokens"], *, writes: bool = False) -> Iterator[None]:
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
        size = _describe_shape(ids)
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


def _describe_shape(ids: Tensor) -> str:
    """The size of a batch in words: "2 rows of 7 tokens", or "2 rows of 3 choices of 7 tokens"."""
    counts = zip(ids.shape, ("row", "choice", "token") if ids.dim() > 2 else ("row", "token"), strict=True)
    return " of ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)


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


class Predictions(NamedTuple):
    """The predictions for one batch.

    Args:
        values: parameters of the distribution, one row per prediction: logits, or a mean. Of question answering, rows
            2i and 2i + 1 are the first and the last token of the answer of row i.
        rows: the row of the batch that each prediction belongs to, in ascending order.
        labels: the true class, token, labels or values of each prediction; None if the batch has none.
        distribution: the distribution with these parameters.
        possible: True at the classes that may be predicted, False where a value of −∞ excludes one; None if all may be.
    """

    values: Float[Tensor, "n k"]
    rows: Int[Tensor, " n"]
    labels: Tensor | None
    distribution: Distribution
    possible: Bool[Tensor, "n k"] | None = None

    @property
    def possible_values(self) -> Tensor:
        """The values of possible classes, which are finite unless the model is broken."""
        return self.values if self.possible is None else self.values[self.possible]


def predict(lm: LanguageModel, batch: Batch, hidden: bool = False) -> tuple[Predictions, Float[Tensor, "rows d"]]:
    """Run the model and gather its predictions at all positions except padding.

    Gradients flow through the predictions when they are enabled.

    Args:
        lm: the model.
        batch: one batch, on the device of the model.
        hidden: whether hidden states are needed.

    Returns:
        The predictions, and for each row the mean of the last hidden states over its tokens, without gradient. The
        second has zero rows if `hidden` is False, and zero columns if an exported model does not give them; for a plain
        encoder it contains the vectors themselves.

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
    given = output.get("decoder_hidden_states") or output.get("hidden_states")
    rows = len(batch["input_ids"])
    if given is None:
        return predictions, predictions.values.new_zeros(rows, 0)
    states = given[-1]
    _, mask = token_masks(lm.task, batch)
    # The tokens of all choices of a row count together; a class may have padded them further.
    weights = mask[..., None].to(states.dtype).reshape(rows, -1, 1)
    states = states[:, : mask.shape[1]].reshape(rows, -1, states.shape[-1])
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
    inputs = inputs_to_read(lm.task, batch)
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = global_token_mask(lm, batch["input_ids"])
    if lm.task is ModelTask.EMBEDDING and lm.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"]
    caching = {"use_cache": False} if lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ) else {}
    reset_attention_type(lm.model)
    with report_run_errors(lm, batch["input_ids"]):
        output = check_named(lm, lm.model(**inputs, **options, **caching))
    _detach_states(lm.model)
    return output


def _detach_states(model: nn.Module) -> None:
    """Detach tensors that modules keep after a run, as the recurrent blocks of RecurrentGemma do.

    A module with a tensor that has a graph cannot be copied, and a model is copied when it is saved.
    """
    for module in model.modules():
        attributes = vars(module)
        for name, value in attributes.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                attributes[name] = value.detach()


def gather_predictions(lm: LanguageModel, output: ModelOutput, batch: Batch) -> Predictions:
    """Gather the predictions from an output of `run_model` for `batch`."""
    if lm.task is ModelTask.EMBEDDING:
        vectors = lm.embedding_pipeline(output["last_hidden_state"], batch["attention_mask"], batch.get(POOLING_MASK))
        return Predictions(vectors, _row_numbers(vectors), None, lm.task.distribution)
    if lm.task is ModelTask.QUESTION_ANSWERING:
        return _gather_answers(output, batch)
    return _gather(lm.task, output["logits"], batch)


def _gather(task: ModelTask, logits: Tensor, batch: Batch) -> Predictions:
    labels = batch.get(LABELS)
    if task.predicts_once_per_row:
        return Predictions(logits, _row_numbers(logits), labels, task.distribution)
    is_counted, labels = predicted_tokens(task, batch)
    rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(is_counted)
    return Predictions(logits[is_counted], rows[is_counted], labels, task.distribution)


def predicted_tokens(task: ModelTask, batch: Batch) -> tuple[Bool[Tensor, "rows tokens"], Int[Tensor, " n"] | None]:
    """Find the tokens of a batch at which a model predicts, and the labels of these predictions.

    Args:
        task: a task with predictions at tokens.
        batch: one batch.

    Returns:
        True at these tokens, and their labels; None if the batch has none.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 1]])}
        >>> predicted_tokens(ModelTask.CAUSAL, batch)
        (tensor([[ True,  True, False]]), tensor([6, 7]))
    """
    labels = batch.get(LABELS)
    if task is ModelTask.CAUSAL:
        # The last token has no next one.
        is_counted, targets = pad(_next_tokens(batch), (0, 1)), batch["input_ids"].roll(-1, dims=1)
    else:
        assert labels is not None or task is ModelTask.TOKEN_CLASSIFICATION, "this task has labels in every batch"
        is_counted, targets = batch["attention_mask"].bool() if labels is None else labels != -100, labels
    return is_counted, None if targets is None else targets[is_counted]


def _gather_answers(output: ModelOutput, batch: Batch) -> Predictions:
    """The first and the last token of each answer, as two predictions over the tokens of the row."""
    task = ModelTask.QUESTION_ANSWERING
    logits = torch.stack([output[name] for name in task.output_names], dim=1).flatten(0, 1)
    possible = batch.get(CONTEXT_MASK, batch["attention_mask"]).bool().repeat_interleave(len(POSITIONS), dim=0)
    labels = torch.stack([batch[name] for name in POSITIONS], dim=1).flatten() if POSITIONS[0] in batch else None
    rows = _row_numbers(logits) // len(POSITIONS)
    return Predictions(logits.masked_fill(~possible, -torch.inf), rows, labels, task.distribution, possible)


def _next_tokens(batch: Batch) -> Bool[Tensor, "rows t-1"]:
    """True at positions whose next token is no padding and has no label of −100 (as in overlapping windows)."""
    is_counted = batch["attention_mask"][:, 1:].bool() & batch["attention_mask"][:, :-1].bool()
    labels = batch.get(LABELS)
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
