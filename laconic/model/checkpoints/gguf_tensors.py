"""Whether the tensors of a GGUF file are those of the model that it describes, by their names and sizes alone."""

import math
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model.checkpoints.report import check_report
from laconic.model.stock import MODEL_ERRORS

BESIDE = "rope_"
"""Begins the names of tensors that are no weights."""


def check_tensors(
    model: PreTrainedModel,
    architecture: str,
    stored: dict[str, tuple[int, ...]],
    source: str,
    given: Collection[str] = (),
) -> None:
    """Judge the header of a file; no number is read.

    Args:
        model: what the file describes, on the meta device.
        architecture: what the file calls it.
        stored: the shape of each tensor by its name in the file, (out, in).
        source: the file, for the sentence.
        given: names of tensors that come from elsewhere, and may be missing.

    Raises:
        UserError: a tensor is missing or of another shape, or numbers are left over.
    """
    places = _places(model, architecture)
    parameters = {name: tuple(one.shape) for name, one in model.named_parameters()}
    # Several tensors of the file may become one of the model, whose name ends otherwise, as experts do.
    by_name = stored | {name.removesuffix(".weight"): shape for name, shape in stored.items()}
    found = {ours: [by_name[name] for name in theirs if name in by_name] for ours, theirs in places.items()}
    missing = [ours for ours in parameters if ours in found and not found[ours]]
    odd = [
        (ours, shapes[0], parameters[ours])
        for ours, shapes in found.items()
        if ours in parameters and len(places[ours]) == 1 and shapes and _size(shapes[0]) != _size(parameters[ours])
    ]
    check_report(model, {"missing_keys": missing, "mismatched_keys": odd, "unexpected_keys": []}, source, given=given)
    check_count(model, stored, source)


def check_count(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise UserError where the file has numbers that the model has no place for: those of names it does not know."""
    there = sum(_size(shape) for name, shape in stored.items() if not name.startswith(BESIDE))
    taken = sum(parameter.numel() for parameter in model.parameters())
    if there != taken:
        raise UserError(
            f"The GGUF file '{source}' holds {there:,} numbers, and transformers' {type(model).__name__} takes "
            f"{taken:,}; use the folder that it was made from."
        )


def _places(model: PreTrainedModel, architecture: str) -> dict[str, list[str]]:
    """The names in the file of each tensor of the model, as transformers reads them; none where it does not say."""
    places: dict[str, list[str]] = {}
    try:
        reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
        processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config={})
        names: Mapping[str, Any] = reading.get_gguf_hf_weights_map(model, processor)
    except MODEL_ERRORS:
        # transformers maps the same names at loading, and the error is told there.
        return {}
    for theirs, ours in names.items():
        if isinstance(ours, str):
            places.setdefault(ours, []).append(theirs)
    return places


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
