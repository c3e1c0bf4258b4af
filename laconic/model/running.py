"""Turn errors of a model's forward pass into one sentence.

Some configurations build a model that cannot run, such as four query heads over three key heads. Only a forward pass
shows it. All code that runs a model does so within `running`, so the first pass reports the error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from traceback import walk_tb

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.utils.generic import ModelOutput

from laconic.errors import UserError, reason_of
from laconic.model.lm import LanguageModel
from laconic.model.stock import MODEL_ERRORS


class ModelRunError(UserError):
    """A model cannot run a batch; `reason` is what its class said."""

    # A process that hands it to another makes it of the sentence alone, and puts the rest in afterwards.
    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def running(lm: LanguageModel, ids: Int[Tensor, "rows tokens"], *, writes: bool = False) -> Iterator[None]:
    """Within the context `lm` reads the tokens `ids`, and goes on writing if `writes`.

    What laconic's own code raises there, as in a format or a hook, stays what it is, and so does a lack of memory.

    Raises:
        ModelRunError: the code of its class, or torch within it, raised something.
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


def named(lm: LanguageModel, output: ModelOutput | tuple[object, ...]) -> ModelOutput:
    """The outputs of a forward pass, with their names.

    Raises:
        UserError: it is a bare tuple.
    """
    if isinstance(output, tuple):
        raise UserError(f"{_called(lm)} gives its outputs without names; set return_dict of its configuration to true.")
    return output


def _called(lm: LanguageModel) -> str:
    return f"The model '{lm.source}'" if lm.source else "The model"


def _is_ours(error: BaseException) -> bool:
    """Whether code of laconic that the model called is on the way to what raised `error`."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    called = dropwhile(_is_laconic, modules)
    return any(map(_is_laconic, called))


def _is_laconic(module: str) -> bool:
    return module.partition(".")[0] == "laconic"
