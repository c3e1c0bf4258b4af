"""Whether weights are those of a configuration, found out from their names and shapes before a number is read."""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from laconic.errors import UserError
from laconic.model.checkpoints.outline import outline_of
from laconic.model.checkpoints.report import check_report
from laconic.model.checkpoints.weights import Weights
from laconic.model.quietly import quietly
from laconic.model.stock import MODEL_ERRORS

EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<part>.*)")
"""A tensor of one expert, in files of mixtures whose class stacks all experts of a layer in one tensor."""


def check_fit(weights: Weights, config: PreTrainedConfig, source: str, given: Collection[str] = ()) -> None:
    """Load the weights as transformers does, on the meta device, and judge its report.

    Args:
        weights: the files.
        config: of the model that they should be of.
        source: the folder or the hub name, for the sentence.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    check_shapes(weights.shapes(), config, source, given, weights.whole_numbers)


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    config: PreTrainedConfig,
    source: str,
    given: Collection[str] = (),
    whole_numbers: Callable[[], Collection[str]] = tuple,
) -> None:
    """The same of tensors of these names and shapes, of which `whole_numbers` names those that hold such numbers."""
    _check_experts(shapes, source)
    kind: Any = type(outline_of(config, source))
    try:
        with quietly():
            model, report = kind.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except MODEL_ERRORS:
        # It may yet be loaded with its numbers; if not, that is told then.
        return
    with warnings.catch_warnings():
        # Notices are told when it is loaded.
        warnings.simplefilter("ignore")
        check_report(model, report, source, whole_numbers, given)


def _check_experts(shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise UserError where one expert of a layer is not like the others: transformers would not say which."""
    layers: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if found := EXPERT.fullmatch(name):
            layers.setdefault((found["experts"], found["part"]), {})[int(found["number"])] = shape
    counts = {experts: 1 + max(max(layers[key]) for key in layers if key[0] == experts) for experts, _ in layers}
    for (experts, part), found in layers.items():
        for number in range(counts[experts]):
            name = f"{experts}.{number}.{part}"
            if number not in found:
                raise UserError(
                    f"The weights of '{source}' are incomplete: '{name}' is missing, which other experts of the layer "
                    "have; use a complete checkpoint."
                )
            usual = max(found.values(), key=list(found.values()).count)
            if found[number] != usual:
                raise UserError(
                    f"The weights of '{source}' do not fit together: '{name}' has the shape {found[number]}, and other "
                    f"experts of the layer {usual}; use files that were saved together."
                )
