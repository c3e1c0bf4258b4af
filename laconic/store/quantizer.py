"""The quantizer of laconic for transformers: `from_pretrained` and `save_pretrained` support formats with it.

In transformers, a quantizer replaces modules of a plain model before weights are loaded; libraries can register their
own. `config.json` then contains `quantization_config: {quant_method: laconic, version, structure}`; see
`laconic.store.structure`.

This module is imported during the import of transformers (`laconic.imports`). Modules that need transformers' models
are therefore imported inside the methods.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from laconic.errors import UserError, quote
from laconic.imports import QUANT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from laconic.store.structure import Structure

NAME = QUANT_METHOD
VERSION = 1


class LaconicConfig(QuantizationConfigMixin):
    """The `quantization_config` of a compressed model.

    Args:
        structure: the structure of the model, as `laconic.store.structure.describe` returns it.
        version: the version of the layout; only `VERSION` is supported.
        quant_method: the name under which transformers finds this class.

    Raises:
        UserError: the version is not supported, or the structure is not a mapping of paths to mappings.

    Example:
        >>> LaconicConfig({"pooler.dense": {"kind": "dense"}}, version=1).to_dict()["quant_method"]
        'laconic'
    """

    def __init__(
        self, structure: "Structure | None" = None, version: int | None = None, quant_method: str = NAME, **_: Any
    ) -> None:
        # The version is checked first, as a later layout may have other keys.
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
                f"got {quote(wrong)}: take the config.json that was saved with the weights."
            )
        self.quant_method: Any = quant_method
        self.version = version
        self.structure = structure


class LaconicQuantizer(HfQuantizer):
    """Replaces modules by empty formats before weights are loaded, and updates the structure when a model is saved."""

    # With this, transformers refuses to quantize a plain checkpoint while loading it.
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        assert isinstance(self.quantization_config, LaconicConfig)
        from laconic.store.pretrained import check_load
        from laconic.store.structure import rebuild

        rebuild(model, self.quantization_config.structure)
        check_load(model)
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from laconic.store.structure import unpack_formats

        unpack_formats(model)
        # transformers forbids casting and training of quantized models; formats allow both.
        vars(model)["is_quantized"] = False
        return model

    # transformers saves the first item as the state dict, unless it is None.
    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> Any:
        """Update the structure in the configuration, and return the tensors to save. Saving begins with this call."""
        from laconic.store.expert_layers import store_stacks_as_they_are
        from laconic.store.structure import describe, stored_tensors

        store_stacks_as_they_are(model)
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
        from laconic.store.densify import densify

        densify(model)
        # After saving, the dtype in the configuration is text; the model has that dtype already.
        if isinstance(dtype, torch.dtype) and dtype != model.dtype:
            torch.nn.Module.to(model, dtype)
        return model


# As decorators, these functions would hide the types of the classes from type checkers.
auto.register_quantization_config(NAME)(LaconicConfig)
auto.register_quantizer(NAME)(LaconicQuantizer)
