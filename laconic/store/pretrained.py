"""Compressed models and `save_pretrained` and `from_pretrained`: attached before saving, checked while loading."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model import LanguageModel, load_empty
from laconic.model.checkpoints.report import check_report
from laconic.model.structure import find_anatomy
from laconic.store.dense import detach_quantizer
from laconic.store.quantizer import NAME, VERSION, LaconicConfig, LaconicQuantizer
from laconic.store.structure import describe, rebuild, unpack


def attach(model: PreTrainedModel) -> None:
    """Make `model.save_pretrained` write the structure that `from_pretrained` needs.

    Args:
        model: changed in place: its configuration gets a `quantization_config`, or loses it where nothing in the
            model needs laconic.

    Raises:
        UserError: another library quantized the model, and a folder can name one only; or no configuration of its
            class describes it.

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
    # PreTrainedModel does not declare the attributes that a quantizer sets.
    target: Any = model
    if structure := describe(model):
        target.hf_quantizer = LaconicQuantizer(LaconicConfig(structure, VERSION))
        target.quantization_method = NAME
        model.config.quantization_config = LaconicConfig(structure, VERSION)


def check_load(model: PreTrainedModel) -> None:
    """Make the load that is under way fail where transformers only warns: on weights that are missing or not used.

    transformers passes its loading report to a method of the model once, so that a class can take harmless entries
    out. That method is replaced for one call.
    """
    hook = "_adjust_missing_and_unexpected_keys"
    adjust = getattr(model, hook)

    def adjust_and_check(report: Any) -> None:
        del vars(model)[hook]
        adjust(report)
        # A model on the meta device is loaded for its report alone.
        if all(tensor.is_meta for tensor in model.parameters()):
            return
        # transformers itself refuses other shapes, unless the caller asks it not to.
        check_report(model, {**report.to_dict(), "mismatched_keys": ()}, model.config.name_or_path or "")

    vars(model)[hook] = adjust_and_check


def skeleton(source: str) -> LanguageModel:
    """The model at `source` on the meta device, with its formats; no weight is read.

    Args:
        source: a folder or the name of a hub model, compressed or not.

    Raises:
        UserError: as `laconic.model.check_model`, or a later version of laconic saved it.
    """
    lm = load_empty(source)
    config = lm.model.config.to_dict().get("quantization_config")
    if config is None:
        return lm
    rebuild(lm.model, LaconicConfig(**config).structure)
    unpack(lm.model)
    return replace(lm, anatomy=find_anatomy(lm.model))
