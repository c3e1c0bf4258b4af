"""Check what transformers reports of loading a checkpoint: every tensor must be used, and every parameter found.

transformers draws missing parameters at random and ignores tensors without a place, with a warning. Here both are
errors, except what is known to be harmless:

- what the class itself lists (`_keys_to_ignore_on_load_missing`, `_keys_to_ignore_on_load_unexpected`), and tensors
  tied to one that is there;
- heads that the class does not have: a plain encoder in a file with its language-modelling head, BERT's next-sentence
  head beside the masked one, a value head, layers that predict further tokens;
- a pooler, where the class has none, or where only a head that is yet to be trained would read it;
- tensors that are computed, not learned: buffers that the class no longer stores, masks, positions.
"""

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice, UserError

POOLER = "pooler."
FURTHER_HEADS = re.compile(r"cls\.seq_relationship\.|(.*\.)?masked_bias$")
"""Beside a head of the same name BERT's next-sentence prediction; the number that GPT-J once masked with."""


def check_report(
    model: PreTrainedModel,
    report: Mapping[str, Any],
    source: str,
    whole_numbers: Callable[[], Collection[str]] = tuple,
    given: Collection[str] = (),
) -> None:
    """Check the report of a load.

    A class other than the one that was saved (`config.architectures`) may have a head that the file does not have.

    Args:
        model: the loaded model.
        report: transformers' `missing_keys`, `unexpected_keys` and `mismatched_keys`, as
            `from_pretrained(..., output_loading_info=True)` returns them.
        source: the model, as errors name it.
        whole_numbers: gives the names of the tensors in the file that hold integers or booleans; called only for
            a model without quantization_config.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing, has another shape, has no place in the model, or holds codes of an unknown
            quantization.
    """
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: '{name}' has shape {tuple(stored)} in the file and "
            f"{tuple(wanted)} in the model; use files that were saved together."
        )
    missing = sorted(name for name in report["missing_keys"] if not _may_be_missing(model, name) and name not in given)
    if missing:
        raise UserError(
            f"The weights of '{source}' are incomplete: {_count(missing, 'of its tensors')} missing, the first is "
            f"'{missing[0]}'; use a complete checkpoint."
        )
    left = [name for name in report["unexpected_keys"] if not _may_be_left_out(model, name)]
    # Whole numbers are masks and positions; only of a model that is compressed they may be codes of weights.
    if model.config.to_dict().get("quantization_config") is None:
        whole = whole_numbers()
        left = [name for name in left if name not in whole]
        codes = sorted(name for name, it in model.named_parameters() if name in whole and it.is_floating_point())
        if codes:
            # transformers would take each code for the weight itself.
            raise UserError(
                f"The weights of '{source}' do not fit its config.json: '{codes[0]}' holds whole numbers in the file, "
                "and no quantization_config says what they stand for; use files that were saved together."
            )
    if left := sorted(left, key=_by_number):
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: {_count(left, 'of the tensors in the file')} not "
            f"in the model that it describes, the first is '{left[0]}'; use the config.json that was saved with the "
            "weights."
        )
    if not model.config.architectures and (heads := sorted(n for n in report["unexpected_keys"] if _is_head(model, n))):
        warnings.warn(
            f"The config.json of '{source}' names no class under architectures, so it is read as a "
            f"{type(model).__name__}, without {len(heads)} of the tensors in the file, the first is "
            f"'{heads[0]}'; name the class there to keep them.",
            CheckpointNotice,
            stacklevel=2,
        )


def _may_be_missing(model: PreTrainedModel, name: str) -> bool:
    # What transformers says of a class it says with the names of the class with a head.
    if any(re.search(one, f"{model.base_model_prefix}.{name}") for one in model._keys_to_ignore_on_load_missing or ()):
        return True
    if model.base_model is model:
        return name.startswith(POOLER)
    # In another class a head is new, and the pooler with it.
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    was_saved_so = type(model).__name__ in (model.config.architectures or ())
    return not was_saved_so and (inner == name or inner.startswith(POOLER))


def _may_be_left_out(model: PreTrainedModel, name: str) -> bool:
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    first = inner.partition(".")[0]
    is_pooler = inner.startswith(POOLER) and not _has(model.base_model, first)
    is_computed = _is_computed(model, name) or _is_computed(model.base_model, inner)
    return _is_head(model, name) or is_pooler or is_computed or FURTHER_HEADS.match(name) is not None


def _is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the tensor belongs to a part beside the base model that this class does not have."""
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    first = inner.partition(".")[0]
    return inner == name and not _has(model.base_model, first) and not _has(model, first)


def _is_computed(model: nn.Module, name: str) -> bool:
    """Whether the tensor is a buffer that the class computes and does not store."""
    path, _, last = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    return module is not None and last in module._non_persistent_buffers_set


def _has(module: nn.Module, name: str) -> bool:
    # A part that this configuration leaves out is there as None.
    held = (module._modules, module._parameters, module._buffers)
    return any(part.get(name) is not None for part in held)


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what} {'is' if len(names) == 1 else 'are'}"


def _by_number(name: str) -> list[tuple[int, str]]:
    # Layer 2 comes before layer 10.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
