"""Support for compressed models in `save_pretrained` (`attach`) and `from_pretrained` (`check_load`)."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model import LanguageModel, load_empty
from laconic.model.anatomy.infer import find_anatomy
from laconic.model.checkpoints.fit import check_report
from laconic.store.densify import detach_quantizer
from laconic.store.expert_layers import is_placeholder
from laconic.store.quantizer import NAME, VERSION, LaconicConfig, LaconicQuantizer
from laconic.store.structure import Structure, describe, rebuild, unpack_formats


def attach(model: PreTrainedModel, entries: Structure | None = None) -> None:
    """Make `model.save_pretrained` write the structure that `from_pretrained` needs.

    Args:
        model: the model, changed in place. Its configuration gets a `quantization_config`; the entry is removed if the
            model can be loaded without laconic.
        entries: the entries of its formats, as for `describe`.

    Raises:
        UserError: another library quantized the model (config.json can name only one quantizer), or no configuration
            of its class describes the model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from laconic.formats import LowRank
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> model.pooler.dense = LowRank(8, 8, rank=2, bias=True)
        >>> attach(model)
        >>> model.config.quantization_config.structure["pooler.dense"]["rank"]
        2
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not isinstance(quantizer, LaconicQuantizer):
        name = quantizer.quantization_config.quant_method
        raise UserError(
            f"The model is already quantized by '{name}', so laconic cannot save it; start from the original."
        )
    detach_quantizer(model)
    # Type checkers do not know the attributes that a quantizer sets.
    target: Any = model
    if structure := describe(model, entries):
        target.hf_quantizer = LaconicQuantizer(LaconicConfig(structure, VERSION))
        target.quantization_method = NAME
        model.config.quantization_config = LaconicConfig(structure, VERSION)


def check_load(model: PreTrainedModel) -> None:
    """Make the current call of `from_pretrained` raise an error for missing or unused weights, instead of a warning.

    transformers passes its loading report to a method of the model, in which a class can remove harmless entries. This
    function replaces that method for one call.

    Args:
        model: the model that is being loaded.
    """
    hook = "_adjust_missing_and_unexpected_keys"
    adjust = getattr(model, hook)

    def adjust_and_check(report: Any) -> None:
        del vars(model)[hook]
        report.unexpected_keys = {name for name in report.unexpected_keys if not is_placeholder(model, name)}
        adjust(report)
        # A model on the meta device has no weights, so that all of them are missing.
        if all(tensor.is_meta for tensor in model.parameters()):
            return
        # transformers raises for mismatched shapes itself, unless the caller passes `ignore_mismatched_sizes`.
        check_report(model, {**report.to_dict(), "mismatched_keys": ()}, model.config.name_or_path or "")

    vars(model)[hook] = adjust_and_check


def skeleton(source: str) -> LanguageModel:
    """Build a model with its formats on the meta device, without reading weights.

    Args:
        source: folder or hub name of a model, compressed or not.

    Raises:
        UserError: as in `laconic.model.check_model`, or the model was saved in a later version of the layout.
    """
    lm = load_empty(source)
    config = lm.model.config.to_dict().get("quantization_config")
    if config is None:
        return lm
    rebuild(lm.model, LaconicConfig(**config).structure)
    unpack_formats(lm.model)
    return replace(lm, anatomy=find_anatomy(lm.model))
