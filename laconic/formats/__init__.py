"""Few formats, each a plain `nn.Module`: what a compressed layer computes, weighs and stores."""

from laconic.formats.base import Format, dense_weight, weight_macs, weight_nbytes
from laconic.formats.lowrank import LowRank, LowRankEmbedding
from laconic.formats.shared import LowRankReader, divided

FORMATS: tuple[type[Format], ...] = (LowRank, LowRankEmbedding, LowRankReader)

__all__ = [
    "FORMATS",
    "Format",
    "LowRank",
    "LowRankEmbedding",
    "LowRankReader",
    "dense_weight",
    "divided",
    "weight_macs",
    "weight_nbytes",
]
