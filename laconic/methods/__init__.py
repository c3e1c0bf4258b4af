"""All compression methods, one file each. The tuple METHODS is the registry: a class in it exists everywhere."""

from laconic.methods.any_of import AnyOf
from laconic.methods.base import LOSS_STATISTICS, Candidate, Candidates, Method, statistics_for
from laconic.methods.lowrank.asvd import Asvd
from laconic.methods.lowrank.base import TruncationMethod
from laconic.methods.lowrank.drone import Drone
from laconic.methods.lowrank.fwsvd import Fwsvd
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.lowrank.svd import Svd
from laconic.methods.lowrank.wlra import Wlra
from laconic.methods.plus import Plus
from laconic.methods.prune.base import UnstructuredPruning
from laconic.methods.prune.data_free import LnStructured, Magnitude, Random, RandomStructured
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.prune.sparsegpt import SparseGpt
from laconic.methods.prune.wanda import Wanda
from laconic.methods.quantize.awq import Awq
from laconic.methods.quantize.dynamic_int8 import Int8
from laconic.methods.quantize.gptq import Gptq
from laconic.methods.quantize.kmeans import KMeans
from laconic.methods.quantize.rtn import Rtn
from laconic.methods.quantize.yaqa import Yaqa

METHODS: tuple[type[Method], ...] = (
    Svd,
    Fwsvd,
    Wlra,
    Asvd,
    Drone,
    KfacSvd,
    Magnitude,
    Random,
    Wanda,
    SparseGpt,
    KfacPrune,
    LnStructured,
    RandomStructured,
    Rtn,
    Awq,
    Gptq,
    Yaqa,
    KMeans,
    Int8,
    Plus,
    AnyOf,
)
"""Every method, in the order in which `laconic methods` lists them."""

__all__ = [
    "LOSS_STATISTICS",
    "METHODS",
    "AnyOf",
    "Asvd",
    "Awq",
    "Candidate",
    "Candidates",
    "Drone",
    "Fwsvd",
    "Gptq",
    "Int8",
    "KMeans",
    "KfacPrune",
    "KfacSvd",
    "LnStructured",
    "Magnitude",
    "Method",
    "Plus",
    "Random",
    "RandomStructured",
    "Rtn",
    "SparseGpt",
    "Svd",
    "TruncationMethod",
    "UnstructuredPruning",
    "Wanda",
    "Wlra",
    "Yaqa",
    "statistics_for",
]
