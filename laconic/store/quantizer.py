"""The transformers plug-in: after `import laconic`, `from_pretrained` and `save_pretrained` understand formats.

transformers calls whatever turns a plain model into another before its weights are loaded a quantizer, and lets
libraries register their own. `config.json` then holds `quantization_config: {quant_method: laconic, version,
structure}`; see `laconic.store.structure`.

This is imported while transformers itself is (`laconic.plugin`), so what handles models is imported by what needs it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from laconic.errors import UserError, shown
from laconic.plugin import QUANT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from laconic.store.structure import Structure

NAME = QUANT_METHOD
VERSION = 1


class LaconicConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed model: the structure to rebuild, and the version of this layout."""

    def __init__(
        self, structure: "Structure | None" = None, version: int | None = None, quant_method: str = NAME, **_: Any
    ) -> None:
        # A later layout may hold further keys, so its number is looked at before anything else.
        if version != VERSION:
            raise UserError(
                f"quantization_config.version must be {VERSION}, the layout that this version of laconic reads; "
                f"got {version!r}: upgrade laconic, or save the model again with the version in use."
            )
        if not isinstance(structure, Mapping) or not all(isinstance(entry, Mapping) for entry in structure.values()):
            entries = structure.items() if isinstance(structure, Mapping) else ()
            odd = next(({name: entry} for name, entry in entries if not isinstance(entry, Mapping)), structure)
            raise UserError(
                "quantization_config.structure in config.json must map layers to what they are stored as; "
                f"got {shown(odd)}: take the config.json that was saved with the weights."
            )
        self.quant_method: Any = quant_method
        self.version = version
        self.structure = structure


class LaconicQuantizer(HfQuantizer):
    """Replaces modules by empty formats before the weights are loaded, and refreshes the structure when saving."""

    # Turning a plain checkpoint into a compressed one is the work of `laconic.compress`.
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        assert isinstance(self.quantization_config, LaconicConfig)
        from laconic.store.attached import judge_load
        from laconic.store.structure import rebuild

        rebuild(model, self.quantization_config.structure)
        judge_load(model)
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from laconic.store.packed import unpack

        unpack(model)
        # Formats are plain linears: the model may be cast and trained, which transformers denies to quantized ones.
        vars(model)["is_quantized"] = False
        return model

    # What transformers takes the first of is any state dict; its own is always None.
    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> Any:
        """Called first when saving: the structure and the tensors written are those of the model as it is now."""
        from laconic.store.packed import stored_tensors
        from laconic.store.structure import describe

        if structure := describe(model):
            model.config.quantization_config = LaconicConfig(structure, VERSION)
        else:
            vars(model.config).pop("quantization_config", None)
        return stored_tensors(model), {}

    # transformers declares no type for the two below, which a type checker reads as None.
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
        # After saving, transformers' configuration holds the dtype as text; the model is in that dtype already.
        if isinstance(dtype, torch.dtype) and dtype != model.dtype:
            torch.nn.Module.to(model, dtype)
        return model


# As decorators these would hide the classes from type checkers.
auto.register_quantization_config(NAME)(LaconicConfig)
auto.register_quantizer(NAME)(LaconicQuantizer)
