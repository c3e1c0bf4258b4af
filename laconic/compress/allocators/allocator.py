"""What every way to share a budget answers: what may be asked of it, what it must measure, and which plan comes out.

Every matrix the same: the size that the method says, or the same fraction of its bytes.
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
    """One budget to share, and what is known of the matrices; `problems` by the name of the unit."""

    size_spec: SizeSpec
    lm: LanguageModel
    groups: Sequence[TiedGroup]
    problems: Mapping[str, Problem]
    data: Calibration | None

    @property
    def units(self) -> list[SolveGroup]:
        """Of each family its last alternative, which is the one taken where losses are not compared."""
        return [unit for group in self.groups for unit in group[-1]]

    @property
    def track(self) -> Track:
        """Shows progress."""
        return silent if self.data is None else self.data.track


class Allocated(NamedTuple):
    """A plan, its predicted loss in nats per prediction (None where none was predicted), and what else is to tell."""

    plan: Plan
    predicted_loss: float | None = None
    record: Mapping[str, Any] = MappingProxyType({})


class Allocator(ABC):
    """One way to share a budget; it holds nothing."""

    @abstractmethod
    def check(self, size_spec: SizeSpec) -> None:
        """Raise UserError where the fields of a step do not go together."""

    @abstractmethod
    def plan(self, job: Job) -> Allocated:
        """A method of its own size for every unit; None leaves it dense.

        Raises:
            UserError: the budget does not fit the matrices, or data is needed and missing.
        """

    def serves(self, method: Method) -> bool:
        """True where it can allocate a budget for `method`; others of a recipe may be meant where it cannot."""
        return True

    def plan_from_shapes(self, job: Job) -> Plan:
        """The plan as far as the shapes alone say it; the method without a size where more than they decides."""
        return {unit.name: job.size_spec.method for unit in job.units}

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        """True where it compares predicted losses, so that the moments for those must be collected."""
        return False

    def needs_statistics(self, size_spec: SizeSpec) -> bool:
        """True where the plan depends on the statistics, which must then be there before the first matrix is solved."""
        return self.needs_losses(size_spec)

    def needs_data(self, size_spec: SizeSpec) -> bool:
        """True where it needs calibration data even for a method that needs none."""
        return False


class Uniform(Allocator):
    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.currency == "latency" and size_spec.keep is not None:
            raise must_be("allocate", "spectrum where currency is latency", "uniform")
        check_unused(size_spec)
        check_size(size_spec)

    def plan(self, job: Job) -> Allocated:
        return Allocated(same_everywhere(job))

    def serves(self, method: Method) -> bool:
        """True where it can allocate a budget for `method`; others of a recipe may be meant where it cannot."""
        return True

    def plan_from_shapes(self, job: Job) -> Plan:
        return same_everywhere(job)


def same_everywhere(job: Job) -> Plan:
    """The method itself for every unit, or set to `keep` of the bytes of each."""
    method, keep = job.size_spec.method, job.size_spec.keep
    if keep is None:
        return {unit.name: method for unit in job.units}
    plan: Plan = {}
    for fraction, group in split_by_group(keep, job.groups):
        units = [unit for group in group for unit in group[-1]]
        shapes = {unit.name: unit.shape for unit in units}
        plan |= allocate_uniform(method, shapes, fraction, job.lm.dtype, stored_fractions(group))
    return plan
