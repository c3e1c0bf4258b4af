"""Every method, one file each. The tuple below is the registry: add a method's class here and it exists everywhere."""

from laconic.methods.base import PREDICTS_FROM, Ladder, Method, Rung, statistics_for
from laconic.methods.lowrank.drone import Drone
from laconic.methods.lowrank.fwsvd import Fwsvd
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.lowrank.svd import Svd

METHODS: tuple[type[Method], ...] = (Svd, Fwsvd, Drone, KfacSvd)

__all__ = [
    "METHODS",
    "PREDICTS_FROM",
    "Drone",
    "Fwsvd",
    "KfacSvd",
    "Ladder",
    "Method",
    "Rung",
    "Svd",
    "statistics_for",
]
