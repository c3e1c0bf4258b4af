"""Few formats, each a plain `nn.Module`: what a compressed layer computes, weighs and stores."""

from laconic.formats.base import Format, dense_weight, weight_macs, weight_nbytes
from laconic.formats.codebook import Codebook
from laconic.formats.constant import Constant
from laconic.formats.dense import Dense
from laconic.formats.int8 import DynamicInt8
from laconic.formats.linear_replacement import LinearReplacement
from laconic.formats.lowrank import LowRank, LowRankEmbedding
from laconic.formats.masked import Masked
from laconic.formats.packed import Coded, CodedEmbedding
from laconic.formats.quantized import Quantized
from laconic.formats.shared import LowRankReader, divided
from laconic.formats.sparse import Sparse, SparseEmbedding
from laconic.formats.sum import Sum

FORMATS: tuple[type[Format], ...] = (
    LowRank,
    LowRankEmbedding,
    LowRankReader,
    Sparse,
    SparseEmbedding,
    Quantized,
    Codebook,
    DynamicInt8,
    CodedEmbedding,
    Sum,
    Dense,
    Constant,
)

__all__ = [
    "FORMATS",
    "Codebook",
    "Coded",
    "CodedEmbedding",
    "Constant",
    "Dense",
    "DynamicInt8",
    "Format",
    "LinearReplacement",
    "LowRank",
    "LowRankEmbedding",
    "LowRankReader",
    "Masked",
    "Quantized",
    "Sparse",
    "SparseEmbedding",
    "Sum",
    "dense_weight",
    "divided",
    "weight_macs",
    "weight_nbytes",
]
