"""The transformers plug-in: after `import laconic`, `from_pretrained` and `save_pretrained` understand formats.

transformers calls whatever turns a plain model into another before its weights are loaded a quantizer, and lets
libraries register their own. `config.json` then holds `quantization_config: {quant_method: laconic, version,
structure}`; see `laconic.store.structure`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from laconic.errors import UserError, shown
from laconic.model.checkpoints.report import check_report
from laconic.model.loading import QUANT_METHOD
from laconic.store.materialize import densify, forget
from laconic.store.packed import stored_tensors, unpack
from laconic.store.structure import Structure, describe, rebuild

NAME = QUANT_METHOD
VERSION = 1


class LaconicConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed model: the structure to rebuild, and the version of this layout."""

    def __init__(
        self, structure: Structure | None = None, version: int | None = None, quant_method: str = NAME, **_: Any
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

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        assert isinstance(self.quantization_config, LaconicConfig)
        rebuild(model, self.quantization_config.structure)
        _judge_load(model)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        unpack(model)
        # Formats are plain linears: the model may be cast and trained, which transformers denies to quantized ones.
        vars(model)["is_quantized"] = False
        return model

    # What transformers takes the first of is any state dict; its own is always None.
    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> Any:
        """Called first when saving: the structure and the tensors written are those of the model as it is now."""
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

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        densify(model)
        # After saving, transformers' configuration holds the dtype as text; the model is in that dtype already.
        if isinstance(dtype, torch.dtype) and dtype != model.dtype:
            torch.nn.Module.to(model, dtype)
        return model


def _judge_load(model: PreTrainedModel) -> None:
    """Have the load of `model` fail where transformers would only warn: of weights drawn anew, or left out.

    transformers tells the model what it found, once, for the model to take out what its class knows to be harmless.
    """
    told = "_adjust_missing_and_unexpected_keys"
    adjust = getattr(model, told)

    def judge(found: Any) -> None:
        del vars(model)[told]
        adjust(found)
        # What has no numbers was not asked for to be used, but for this very report.
        if all(tensor.is_meta for tensor in model.parameters()):
            return
        # Other shapes transformers refuses itself, unless it is asked not to.
        check_report(model, {**found.to_dict(), "mismatched_keys": ()}, model.config.name_or_path or "")

    vars(model)[told] = judge


def attach(model: PreTrainedModel) -> None:
    """Make `model.save_pretrained` write what `from_pretrained` needs; a model without formats is left plain.

    Raises:
        UserError: another library quantized the model, and one folder cannot say both; or it is something that no
            configuration of its class describes.
    """
    other = getattr(model, "hf_quantizer", None)
    if other is not None and not isinstance(other, LaconicQuantizer):
        name = other.quantization_config.quant_method
        raise UserError(
            f"The model is already quantized by '{name}', so laconic cannot save it; start from the original."
        )
    forget(model)
    if structure := describe(model):
        model.hf_quantizer = LaconicQuantizer(LaconicConfig(structure, VERSION))  # type: ignore[assignment]
        model.quantization_method = NAME  # type: ignore[assignment]
        model.config.quantization_config = LaconicConfig(structure, VERSION)


def register() -> None:
    """Make transformers know laconic; again is harmless."""
    if NAME not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(NAME)(LaconicConfig)
        auto.register_quantizer(NAME)(LaconicQuantizer)
