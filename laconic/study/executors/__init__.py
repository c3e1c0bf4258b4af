"""What runs the cells of a study: this process, several processes of this machine, or Ray."""

from laconic.study.executors.base import Executor
from laconic.study.executors.local import InProcess, Processes

__all__ = ["Executor", "InProcess", "Processes"]
