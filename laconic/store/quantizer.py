"""The transformers plug-in: after `import laconic`, `from_pretrained` and `save_pretrained` understand formats.

A quantizer of transformers replaces modules of a plain model before its weights are loaded, and libraries can register
their own. `config.json` then holds `quantization_config: {quant_method: laconic, version, structure}`; see
`laconic.store.structure`.

This module is imported while transformers itself is (`laconic.imports`), so methods import what needs models.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from laconic.errors import UserError, shown
from laconic.imports import QUANT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from laconic.store.structure import Structure

NAME = QUANT_METHOD
VERSION = 1


class LaconicConfig(QuantizationConfigMixin):
    """The `quantization_config` of a compressed model.

    Args:
        structure: what to rebuild, as `laconic.store.structure.describe` returns it.
        version: the version of this layout; only `VERSION` can be read.
        quant_method: the name under which transformers finds this class.

    Raises:
        UserError: the version is another one, or the structure is no mapping of paths to mappings.

    Example:
        >>> LaconicConfig({"pooler.dense": {"kind": "dense"}}, version=1).to_dict()["quant_method"]
        'laconic'
    """

    def __init__(
        self, structure: "Structure | None" = None, version: int | None = None, quant_method: str = NAME, **_: Any
    ) -> None:
        # A later layout may have other keys, so the version is checked first.
        if version != VERSION:
            raise UserError(
                f"quantization_config.version must be {VERSION}, the layout that this version of laconic reads; "
                f"got {version!r}: upgrade laconic, or save the model again with the version in use."
            )
        if not isinstance(structure, Mapping) or not all(isinstance(entry, Mapping) for entry in structure.values()):
            entries = structure.items() if isinstance(structure, Mapping) else ()
            wrong = next(({name: entry} for name, entry in entries if not isinstance(entry, Mapping)), structure)
            raise UserError(
                "quantization_config.structure in config.json must map layers to their formats; "
                f"got {shown(wrong)}: take the config.json that was saved with the weights."
            )
        self.quant_method: Any = quant_method
        self.version = version
        self.structure = structure


class LaconicQuantizer(HfQuantizer):
    """Replaces modules by empty formats before weights are loaded, and updates the structure when a model is saved."""

    # transformers then refuses to quantize a plain checkpoint on loading; `laconic.compress` does that.
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        assert isinstance(self.quantization_config, LaconicConfig)
        from laconic.store.pretrained import check_load
        from laconic.store.structure import rebuild

        rebuild(model, self.quantization_config.structure)
        check_load(model)
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from laconic.store.structure import unpack

        unpack(model)
        # Formats are made of plain linears: the model can be cast and trained, unlike other quantized models.
        vars(model)["is_quantized"] = False
        return model

    # transformers writes the first item as the state dict; its own quantizers return None there.
    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> Any:
        """Called first when saving: update the structure in the configuration and return the tensors to write."""
        from laconic.store.structure import describe, stored_tensors

        if structure := describe(model):
            model.config.quantization_config = LaconicConfig(structure, VERSION)
        else:
            vars(model.config).pop("quantization_config", None)
        return stored_tensors(model), {}

    # transformers declares no return type for these two, which a type checker reads as None.
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
        from laconic.store.dense import densify

        densify(model)
        # After saving, transformers passes the dtype as text; the model has that dtype already.
        if isinstance(dtype, torch.dtype) and dtype != model.dtype:
            torch.nn.Module.to(model, dtype)
        return model


# Used as decorators, these would hide the classes from type checkers.
auto.register_quantization_config(NAME)(LaconicConfig)
auto.register_quantizer(NAME)(LaconicQuantizer)
