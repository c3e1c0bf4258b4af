"""The schemes of compressed-tensors: which layers they hold, and how `quantization_config` describes them.

A layer is stored as weights alone in 4 or 8 bits (W4A16, W8A16; `pack-quantized`), or as int8 with inputs that are
rounded to 8 bits for each token (W8A8; `int-quantized`). A scale is for a group of 32, 64 or 128 columns of a row, or
for a whole row (a channel).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from laconic.errors import UserError
from laconic.formats import DynamicInt8, Quantized
from laconic.model.mixture import ROUTERS

PACKED, INTEGERS, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
"""The names of the storage formats."""
BITS = (4, 8)
GROUPS = (128, 64, 32)
"""The sizes of groups that vLLM's kernels have, largest first."""
MULTIPLE = 32
"""Rows and columns of a packed matrix are read in multiples of this."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM joins into one matrix. It takes the scheme of the first for all of them."""


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme of compressed-tensors: bits, groups, zero points and the rounding of inputs.

    Args:
        bits: 4 or 8.
        group: columns that share a scale; None for whole rows.
        symmetric: there are no zero points.
        rounds_inputs: inputs are rounded to 8 bits for each token.

    Example:
        >>> Scheme(bits=4, group=128).label
        'W4A16, groups of 128, symmetric'
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    rounds_inputs: bool = False

    @property
    def format(self) -> str:
        """The name of the storage format."""
        return INTEGERS if self.rounds_inputs else PACKED

    @property
    def label(self) -> str:
        """Its description in reports."""
        if self.rounds_inputs:
            return "W8A8, a scale for each row, inputs rounded for each token"
        groups = "a scale for each row" if self.group is None else f"groups of {self.group}"
        return f"W{self.bits}A16, {groups}, {'symmetric' if self.symmetric else 'asymmetric'}"

    def to_json(self, targets: Sequence[str]) -> dict[str, Any]:
        """The entry of `config_groups`.

        Args:
            targets: names of layers, or the class that they have.
        """
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": list(targets),
            "weights": weights,
            "input_activations": inputs if self.rounds_inputs else None,
            "output_activations": None,
            "format": self.format,
        }


def scheme_of(name: str, layer: Quantized | DynamicInt8) -> Scheme:
    """The scheme of a quantized layer.

    A larger group than the largest of `GROUPS` is stored as several groups with the same scale.

    Args:
        name: the path of the layer, for messages.
        layer: the layer, with or without weights.

    Raises:
        UserError: compressed-tensors or vLLM does not have such a layer.

    Example:
        >>> scheme_of("proj", Quantized((64, 512), bits=4, group=256, symmetric=True)).group
        128
        >>> scheme_of("proj", Quantized((64, 64), bits=3, group=32, symmetric=True))
        Traceback (most recent call last):
        laconic.errors.UserError: The layer 'proj' has codes of 3 bits, and vLLM reads codes of 4 or 8 bits: ...
    """
    if isinstance(layer, DynamicInt8):
        return Scheme(bits=8, rounds_inputs=True)
    if layer.bits not in BITS:
        nearest = min(BITS, key=lambda bits: abs(bits - layer.bits))
        raise UserError(
            f"The layer '{name}' has codes of {layer.bits} bits, and vLLM reads codes of 4 or 8 bits: compress with "
            f"bits={nearest}."
        )
    rows, columns = layer.shape
    if rows % MULTIPLE or columns % MULTIPLE:
        raise UserError(
            f"The layer '{name}' has {rows} × {columns} weights, and vLLM reads packed codes of multiples of {MULTIPLE}"
            " rows and columns: use dynamic-int8, or leave the layer out with targets."
        )
    if layer.group is None or layer.group > columns or (layer.group == columns and columns not in GROUPS):
        return Scheme(layer.bits, None, layer.symmetric)
    group = next((size for size in GROUPS if layer.group % size == 0 and columns % size == 0), None)
    if group is None or columns % layer.group:
        sizes = [size for size in GROUPS if columns % size == 0]
        nearest = min(sizes, key=lambda size: abs(size - (layer.group or 0)))
        raise UserError(
            f"The layer '{name}' has groups of {layer.group} among its {columns} columns, and vLLM reads groups of "
            f"{', '.join(map(str, sorted(sizes)))} there: compress with group_size={nearest}."
        )
    return Scheme(layer.bits, group, layer.symmetric)


def check_fused(schemes: Mapping[str, Scheme], modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Check that layers which vLLM joins have the same scheme.

    Args:
        schemes: the scheme of each quantized layer, by path.
        modules: the modules of the model by path.

    Raises:
        UserError: two of them differ.
    """
    for path, module in modules:
        for names in FUSED:
            present = [name for name in names if name in dict(module.named_children())]
            labels = {name: _label(schemes.get(f"{path}.{name}")) for name in present}
            for name in present:
                if labels[name] != labels[present[0]]:
                    raise UserError(
                        f"'{path}.{present[0]}' is {labels[present[0]]} and '{name}' is {labels[name]}, and vLLM joins "
                        f"them in one matrix of one scheme: compress {', '.join(names)} alike."
                    )


def _label(scheme: Scheme | None) -> str:
    return "not quantized" if scheme is None else scheme.label


def quantization_config(
    schemes: Mapping[str, Scheme],
    modules: Iterable[tuple[str, nn.Module]],
    experts: Mapping[str, Scheme | None] | None = None,
) -> dict[str, Any]:
    """The `quantization_config` of a model.

    Args:
        schemes: the scheme of each quantized layer, by path.
        modules: the modules of the model by path; linears and routers without a scheme are listed under
            `ignore`.
        experts: the scheme of each layer of experts, by its path in the file; None for one that is not quantized.
    """
    # Engines look for the names of single experts.
    of_experts = {f"re:{re.escape(path)}[.].*": scheme for path, scheme in (experts or {}).items()}
    targets = {**schemes, **{pattern: scheme for pattern, scheme in of_experts.items() if scheme is not None}}
    kinds = list(dict.fromkeys(targets.values()))
    # vLLM has a linear layer for a router, which is none in transformers.
    linears = [name for name, module in modules if isinstance(module, nn.Linear) or name.rpartition(".")[2] in ROUTERS]
    groups = {
        # Names of single layers only where one scheme is not enough.
        f"group_{number}": kind.to_json(
            ["Linear"] if len(kinds) == 1 else [name for name, scheme in targets.items() if scheme == kind]
        )
        for number, kind in enumerate(kinds)
    }
    formats = {kind.format for kind in kinds}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [
            *(name for name in linears if name not in schemes),
            *(pattern for pattern, scheme in of_experts.items() if scheme is None),
        ],
        "kv_cache_scheme": None,
    }
