"""A whole model corrected in forward order: each layer on inputs as those before it have become."""

from torch import nn

from laconic.calibrate import Calibration
from laconic.model import LanguageModel
from laconic.recover.correct.comparison import Comparison
from laconic.recover.correct.fit import adjust, bias_of, centre, reads, refit


def correct(lm: LanguageModel, original: LanguageModel, data: Calibration, refits: bool) -> None:
    """Change the biases of the layers of `lm`, in place, and where it `refits` what else they store.

    Raises:
        UserError: inputs or outputs of a layer are not finite.
    """
    for pairs, anchor in Comparison(lm, original, data).steps():
        for pair in pairs:
            layer = lm.model.get_submodule(pair.name)
            centred = bias_of(layer) is not None
            whole, folds = anchor.moments(pair.name, centred)
            if isinstance(layer, nn.LayerNorm):
                adjust(lm, layer, whole, folds if refits else [])
                continue
            if refits and reads(layer, whole) and not _is_shared(lm, layer):
                refit(lm, layer, whole, folds)
            if centred:
                centre(lm, layer, whole)


def _is_shared(lm: LanguageModel, layer: nn.Module) -> bool:
    """Whether another module has a tensor of the layer's matrix too, as the embedding has that of a tied head."""
    bias = bias_of(layer)
    own = {id(tensor) for tensor in layer.parameters() if tensor is not bias}
    inside = set(layer.modules())
    others = (module for module in lm.model.modules() if module not in inside)
    return any(id(tensor) in own for module in others for tensor in module.parameters(recurse=False))
