"""The model that a caller passes: a folder or hub name, or a loaded transformers model with its tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.errors import UserError
from laconic.model import LanguageModel, ModelTask, load, with_tokenizers
from laconic.model.loading import load_pipeline
from laconic.store import skeleton


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """A model that a recipe, an evaluation or an export starts from.

    Args:
        name: folder or hub name. For a loaded model, the folder or hub name that it was loaded from, or "" if it was
            made in memory.
        loaded: the model itself; None to load it from `name`.
        tokenizer: replaces the tokenizer in the folder of the model.
        label_order: the names of the classes in the order of the model's logits; None for the names in its
            configuration.
        device: the device to load the model to; a model that is loaded already stays on its device.

    Example:
        >>> ModelInput(name="nowhere").skeleton()
        Traceback (most recent call last):
        laconic.errors.UserError: ...
    """

    name: str
    loaded: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    label_order: Sequence[str | int] | None = None
    device: str = "cpu"

    def structure(self) -> LanguageModel:
        """The model without weights and without tokenizers.

        Raises:
            UserError: there is no model of this name, or it cannot be used.
        """
        return skeleton(self.name) if self.loaded is None else _with_pipeline(LanguageModel.of(self.loaded)).to_meta()

    def skeleton(self) -> LanguageModel:
        """The model without weights, with its tokenizers.

        Raises:
            UserError: there is no model of this name, or it or its tokenizer cannot be used.
        """
        return self.with_inputs(self.structure())

    def check_tokenizer(self) -> None:
        """Raise UserError if a loaded model has no tokenizer: none was passed, and its source has none either."""
        if self.loaded is None or self.with_inputs(LanguageModel.of(self.loaded)).tokenizer is not None:
            return
        place = f"in '{self.name}', where the model was loaded from" if self.name else "for a model made in memory"
        raise UserError(f"There is no tokenizer {place}; pass tokenizer=.")

    @contextmanager
    def open_model(self, *, restore: bool = True, packed: bool = False) -> Iterator[LanguageModel]:
        """Within the block the model is in float32 and in evaluation mode.

        After the block, a model that the caller had loaded gets its dtypes and its mode back.

        Args:
            restore: also cast a model that this function loaded back to the dtype of its checkpoint.
            packed: as in `laconic.model.load`.

        Raises:
            UserError: the model cannot be loaded.
        """
        if self.loaded is None:
            lm = load(self.name, self.device, packed=packed)
            # `load` returns float32 parameters for any checkpoint. Buffers keep their dtype (rotary frequencies).
            dtypes = dict.fromkeys((name for name, _ in lm.model.named_parameters()), lm.dtype)
        else:
            lm = _with_pipeline(LanguageModel.of(self.loaded))
            dtypes = {name: parameter.dtype for name, parameter in lm.model.named_parameters()}
        dtypes |= {name: buffer.dtype for name, buffer in lm.model.named_buffers()}
        training = lm.model.training
        lm.model.float().eval()
        try:
            yield self.with_inputs(lm)
        finally:
            if restore or self.loaded is not None:
                cast(lm.model, dtypes, lm.dtype)
                lm.model.train(training)

    def with_inputs(self, lm: LanguageModel) -> LanguageModel:
        """`lm` with its tokenizers and the order of its classes.

        Args:
            lm: this model, with or without weights.

        Raises:
            UserError: the tokenizer cannot be read, or the order does not fit the model.
        """
        model = lm if self.tokenizer is None else replace(lm, tokenizer=self.tokenizer)
        return with_tokenizers(model).with_label_order(self.label_order)


def cast(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype], default: torch.dtype) -> None:
    """Cast every floating-point parameter and buffer in place.

    Args:
        model: the model that is changed.
        dtypes: the dtype of each tensor, by its name.
        default: the dtype of tensors that `dtypes` does not name, such as those of compressed layers.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, default))


def _with_pipeline(lm: LanguageModel) -> LanguageModel:
    """Add the pooling modules of sentence-transformers, if the model is an encoder and its source has them."""
    if lm.task is not ModelTask.EMBEDDING or lm.pipeline is not None or not lm.source:
        return lm
    pipeline = load_pipeline(lm.source)
    return lm if pipeline is None else replace(lm, pipeline=pipeline.to(lm.device))
