"""Formats of compressed layers: modules that compute the layer, know its size, and are saved and loaded."""

from laconic.formats.base import Format, dense_weight, weight_macs, weight_nbytes
from laconic.formats.codebook import Codebook
from laconic.formats.dense import Constant, Dense, LinearReplacement
from laconic.formats.expert_layer import ExpertLayer
from laconic.formats.experts import DenseExpertStack, ExpertStack
from laconic.formats.ggml import GgmlBlocks
from laconic.formats.int8 import DynamicInt8
from laconic.formats.lowrank import LowRank, LowRankEmbedding, LowRankReader, split_rows
from laconic.formats.masked import Masked
from laconic.formats.packed import PackedCodes, PackedEmbedding
from laconic.formats.quantized import Quantized
from laconic.formats.routing import Routing
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
    GgmlBlocks,
    PackedEmbedding,
    Sum,
    Dense,
    Constant,
)
"""Every format; the config.json of a saved model names it by its `kind`."""

__all__ = [
    "FORMATS",
    "Codebook",
    "Constant",
    "Dense",
    "DenseExpertStack",
    "DynamicInt8",
    "ExpertLayer",
    "ExpertStack",
    "Format",
    "GgmlBlocks",
    "LinearReplacement",
    "LowRank",
    "LowRankEmbedding",
    "LowRankReader",
    "Masked",
    "PackedCodes",
    "PackedEmbedding",
    "Quantized",
    "Routing",
    "Sparse",
    "SparseEmbedding",
    "Sum",
    "dense_weight",
    "split_rows",
    "weight_macs",
    "weight_nbytes",
]
