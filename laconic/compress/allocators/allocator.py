"""The base class of allocators, which divide a budget among matrices, and the uniform allocator.

The uniform allocator gives every matrix the method's own size, or the same fraction of its bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from laconic.allocate import Plan, allocate_uniform
from laconic.calibrate import Calibration, Problem
from laconic.compress.size_spec import SizeSpec, check_size, check_unused
from laconic.compress.solve_groups import SolveGroup, TiedGroup, split_by_group, stored_fractions
from laconic.errors import must_be
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.progress import Track, silent


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of an allocator.

    Args:
        size_spec: the method and the size that the step asks for.
        lm: the model.
        groups: the families of targeted units.
        problems: the problem of each unit, by name; empty if only shapes are known.
        data: the calibration data; None if there is none.
    """

    size_spec: SizeSpec
    lm: LanguageModel
    groups: Sequence[TiedGroup]
    problems: Mapping[str, Problem]
    data: Calibration | None

    @property
    def units(self) -> list[SolveGroup]:
        """The units of the last alternative of each family, which is used unless predicted losses are compared."""
        return [unit for group in self.groups for unit in group[-1]]

    @property
    def track(self) -> Track:
        """Shows progress."""
        return silent if self.data is None else self.data.track


class Allocated(NamedTuple):
    """The output of an allocator.

    Args:
        plan: the method of each unit.
        predicted_loss: predicted KL divergence in nats per prediction; None if it was not predicted.
        record: further results for the record of the step.
    """

    plan: Plan
    predicted_loss: float | None = None
    record: Mapping[str, Any] = MappingProxyType({})


class Allocator(ABC):
    """One way to divide a budget among matrices. Instances have no state."""

    @abstractmethod
    def check(self, size_spec: SizeSpec) -> None:
        """Raise UserError if the fields of a step contradict each other or the allocator."""

    @abstractmethod
    def plan(self, job: Job) -> Allocated:
        """Choose a method with a size for every unit, or None to keep it dense.

        Raises:
            UserError: the budget does not fit the matrices, or data is needed and missing.
        """

    def serves(self, method: Method) -> bool:
        """Return whether the allocator supports `method`."""
        return True

    def plan_from_shapes(self, job: Job) -> Plan:
        """Return the plan from shapes alone; if it also depends on weights or data, the methods have no size."""
        return {unit.name: job.size_spec.method for unit in job.units}

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        """True if it compares predicted losses, which need input and gradient covariances."""
        return False

    def needs_statistics(self, size_spec: SizeSpec) -> bool:
        """True if planning needs statistics, which must then be collected before the first matrix is solved."""
        return self.needs_losses(size_spec)

    def needs_data(self, size_spec: SizeSpec) -> bool:
        """True if it needs calibration data even for a method that needs none."""
        return False


class Uniform(Allocator):
    """Gives every matrix the method's own size, or the same fraction of its bytes."""

    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.currency == "latency" and size_spec.keep is not None:
            raise must_be("allocate", "spectrum where currency is latency", "uniform")
        check_unused(size_spec)
        check_size(size_spec)

    def plan(self, job: Job) -> Allocated:
        return Allocated(same_everywhere(job))

    def serves(self, method: Method) -> bool:
        """Return True: every method is supported."""
        return True

    def plan_from_shapes(self, job: Job) -> Plan:
        return same_everywhere(job)


def same_everywhere(job: Job) -> Plan:
    """Return the uniform plan: the method as it is for every unit, or sized to `keep` of the unit's bytes."""
    method, keep = job.size_spec.method, job.size_spec.keep
    if keep is None:
        return {unit.name: method for unit in job.units}
    plan: Plan = {}
    for fraction, group in split_by_group(keep, job.groups):
        units = [unit for group in group for unit in group[-1]]
        shapes = {unit.name: unit.shape for unit in units}
        plan |= allocate_uniform(method, shapes, fraction, job.lm.dtype, stored_fractions(group))
    return plan
