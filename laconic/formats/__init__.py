"""Few formats, each a plain `nn.Module`: what a compressed layer computes, weighs and stores."""

from laconic.formats.base import Format, dense_weight, weight_macs, weight_nbytes
from laconic.formats.constant import Constant
from laconic.formats.dense import Dense
from laconic.formats.lowrank import LowRank, LowRankEmbedding
from laconic.formats.mapped import Mapped
from laconic.formats.masked import Masked
from laconic.formats.shared import LowRankReader, divided
from laconic.formats.sparse import Sparse, SparseEmbedding

FORMATS: tuple[type[Format], ...] = (LowRank, LowRankEmbedding, LowRankReader, Sparse, SparseEmbedding, Dense, Constant)

__all__ = [
    "FORMATS",
    "Constant",
    "Dense",
    "Format",
    "LowRank",
    "LowRankEmbedding",
    "LowRankReader",
    "Mapped",
    "Masked",
    "Sparse",
    "SparseEmbedding",
    "dense_weight",
    "divided",
    "weight_macs",
    "weight_nbytes",
]
