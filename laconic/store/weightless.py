"""A model that was saved, without its weights: compressed ones as they were compressed."""

from dataclasses import replace

from laconic.model import LanguageModel
from laconic.model import load_empty as plain_skeleton
from laconic.model.structure import find_anatomy
from laconic.store.packed import unpack
from laconic.store.quantizer import LaconicConfig
from laconic.store.structure import rebuild


def skeleton(source: str) -> LanguageModel:
    """The model at `source` on the meta device, with a format wherever it has one; no weight is read.

    Raises:
        UserError: as `laconic.model.check_model`, or its structure is of another version of laconic.
    """
    lm = plain_skeleton(source)
    spelled = lm.model.config.to_dict().get("quantization_config")
    if spelled is None:
        return lm
    rebuild(lm.model, LaconicConfig(**spelled).structure)
    unpack(lm.model)
    return replace(lm, anatomy=find_anatomy(lm.model))
