"""Keep the codes of another library: its matrices become layers of laconic, as in a model that laconic compressed."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.formats import PackedCodes
from laconic.imports import QUANT_METHOD
from laconic.model.checkpoints.quantized.coded_matrix import CodedMatrix
from laconic.model.checkpoints.quantized.readers import PlainTensors

LINEARS = (nn.Linear, Conv1D)
LAYOUT_VERSION = 1
"""The version of the layout of laconic's own checkpoints (`laconic.store.quantizer`)."""


@dataclass(frozen=True)
class KeptCodes:
    """The tensors of a checkpoint, with those of the layers that keep their codes as laconic stores them.

    Args:
        structure: the description of each layer with codes, by path.
        tensors: their tensors by name.
        rest: the other tensors of the plain model.
    """

    structure: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    rest: PlainTensors

    def describe_in(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A copy of the configuration from which transformers builds the layers with codes."""
        described = copy.deepcopy(config)
        if self.structure:
            vars(described)["quantization_config"] = {
                "quant_method": QUANT_METHOD,
                "version": LAYOUT_VERSION,
                "structure": dict(self.structure),
            }
        return described


def keep_codes(outline: PreTrainedModel, plain: PlainTensors) -> KeptCodes:
    """Turn matrices of codes into layers, where a linear layer has the name and a format of laconic the same numbers.

    Args:
        outline: the model without weights.
        plain: what the reader of the library returned; a layer takes its bias.
    """
    modules = dict(outline.named_modules())
    structure: dict[str, Mapping[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    rest = dict(plain)
    for name, matrix in plain.items():
        path = name.removesuffix(".weight")
        linear = next(
            (each for each in (path, f"{outline.base_model_prefix}.{path}") if isinstance(modules.get(each), LINEARS)),
            None,
        )
        layer = matrix.to_format() if isinstance(matrix, CodedMatrix) and linear is not None else None
        if layer is None or linear is None:
            continue
        bias = rest.pop(f"{path}.bias", None)
        layer.set_bias(bias if isinstance(bias, Tensor) else None)
        del rest[name]
        structure[linear] = {"kind": layer.kind, **layer.spec()}
        tensors |= {f"{linear}.{key}": tensor for key, tensor in _stored(layer).items()}
    return KeptCodes(structure, tensors, rest)


def _stored(layer: PackedCodes) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in layer.state_dict().items()}
