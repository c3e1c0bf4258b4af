"""Tiny random models that can read text."""

from dataclasses import replace

from laconic.model import LanguageModel
from tests.architectures import BY_NAME
from tests.tokens import letters


def with_tokenizer(model: str | LanguageModel) -> LanguageModel:
    """The architecture of this name, or the model, with a tokenizer of letters."""
    lm = BY_NAME[model].lm() if isinstance(model, str) else model
    return replace(lm, tokenizer=letters("start" if lm.task.value == "causal" else "pair"))
