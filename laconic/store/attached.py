"""What makes `save_pretrained` and `from_pretrained` of a model write and read formats, and judges what was read."""

from typing import Any

from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model.checkpoints.report import check_report
from laconic.store.densify import forget
from laconic.store.quantizer import NAME, VERSION, LaconicConfig, LaconicQuantizer
from laconic.store.structure import describe


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
    # PreTrainedModel does not declare what a quantizer sets on it.
    marked: Any = model
    if structure := describe(model):
        marked.hf_quantizer = LaconicQuantizer(LaconicConfig(structure, VERSION))
        marked.quantization_method = NAME
        model.config.quantization_config = LaconicConfig(structure, VERSION)


def judge_load(model: PreTrainedModel) -> None:
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
