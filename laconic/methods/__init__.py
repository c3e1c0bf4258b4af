"""Every method, one file each. The tuple below is the registry: add a method's class here and it exists everywhere."""

from laconic.methods.base import PREDICTS_FROM, Ladder, Method, Rung, statistics_for
from laconic.methods.lowrank.asvd import Asvd
from laconic.methods.lowrank.drone import Drone
from laconic.methods.lowrank.fwsvd import Fwsvd
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.lowrank.svd import Svd
from laconic.methods.lowrank.wlra import Wlra

METHODS: tuple[type[Method], ...] = (Svd, Fwsvd, Wlra, Asvd, Drone, KfacSvd)

__all__ = [
    "METHODS",
    "PREDICTS_FROM",
    "Asvd",
    "Drone",
    "Fwsvd",
    "KfacSvd",
    "Ladder",
    "Method",
    "Rung",
    "Svd",
    "Wlra",
    "statistics_for",
]
