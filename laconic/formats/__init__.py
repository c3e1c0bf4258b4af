"""Few formats, each a plain `nn.Module`: what a compressed layer computes, weighs and stores."""

from laconic.formats.base import Format, dense_weight, weight_macs, weight_nbytes
from laconic.formats.lowrank import LowRank, LowRankEmbedding

FORMATS: tuple[type[Format], ...] = (LowRank, LowRankEmbedding)

__all__ = ["FORMATS", "Format", "LowRank", "LowRankEmbedding", "dense_weight", "weight_macs", "weight_nbytes"]
