"""The folder layout of sentence-transformers: a transformer, and modules behind it that `modules.json` names."""

from laconic.model.checkpoints.sentences.declared import Declared, declared
from laconic.model.checkpoints.sentences.modules import MODULES

__all__ = ["MODULES", "Declared", "declared"]
