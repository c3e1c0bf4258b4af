"""The models that are stored for each version, and the functions that read them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import laconic
from laconic.formats import PackedCodes
from laconic.formats.packed_stack import PackedStack
from laconic.model import LanguageModel

HERE = Path(__file__).parent
VERSIONS = sorted(path.parent for path in HERE.glob("*/made.json"))
"""A folder for each version of laconic."""
LOGITS = "logits"

assert laconic.__name__, "importing it teaches transformers to read these folders"


def load(folder: Path) -> PreTrainedModel:
    """The model in `folder` in float32, by transformers."""
    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of the model; codes are decoded first, because the kernels for codes differ between machines."""
    with ExitStack() as stack:
        for part in model.modules():
            if isinstance(part, (PackedCodes, PackedStack)):
                stack.enter_context(part.keep_decoded())
        return model(**batch).logits


@torch.no_grad()
def vectors(lm: LanguageModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The vector that a sentence encoder makes of each row."""
    assert lm.pipeline is not None
    return lm.pipeline(lm.model(**batch)[0], batch["attention_mask"])


def within(old: Any, new: Any) -> bool:
    """Whether `new` says all that `old` does; it may say more, by keys that there were not."""
    if isinstance(old, Mapping):
        return isinstance(new, Mapping) and all(key in new and within(value, new[key]) for key, value in old.items())
    if isinstance(old, Sequence) and not isinstance(old, str):
        return isinstance(new, Sequence) and len(old) == len(new) and all(map(within, old, new))
    return type(old) is type(new) and old == new
