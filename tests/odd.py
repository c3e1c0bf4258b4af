"""Folders of tiny random models whose configuration or tokenizer is not as one expects."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.architectures import BY_NAME
from tests.tokens import letters

ABSENT = object()
"""In place of a value: the configuration has no such entry."""


def saved(
    folder: Path,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """The folder, with the model (by the name of its architecture), a tokenizer, and changes of its config.json."""
    torch.manual_seed(0)
    made = BY_NAME[model].lm().model if isinstance(model, str) else model
    made.save_pretrained(folder)
    (letters("pair") if tokenizer is None else tokenizer).save_pretrained(folder)
    path = folder / "config.json"
    said = {**json.loads(path.read_text()), **(config or {})}
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not ABSENT}))
    return folder
