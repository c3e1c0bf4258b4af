"""The base class of allocators, which divide a budget among matrices, and the uniform allocator.

The uniform allocator gives every matrix the method's own size, or the same fraction of its bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from laconic.allocate import Plan, allocate_uniform
from laconic.calibrate import Calibration, Problem, Statistic
from laconic.compress.checks import SizeSpec, check_size, check_unused
from laconic.compress.fitted import solved_shape
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import LayerSet, SolveGroup, all_groups, stored_fractions
from laconic.compress.solving import choose_planning, iterate_problems, problems_by_matrix
from laconic.errors import must_be
from laconic.methods import AnyOf, Method
from laconic.model import LanguageModel
from laconic.progress import Track, silent


@dataclass(frozen=True)
class AllocationRequest:
    """The input of an allocator.

    Args:
        size_spec: the method and the size that the step asks for.
        lm: the model.
        layer_sets: the targeted layers.
        problems: the problem of each group of layers, by name; empty if only shapes are known.
        data: the calibration data; None if there is none.
        needs: the statistics to measure block by block, for a streamed model, whose problems are not in memory
            together; None if `problems` has all of them.
        once: keep what solves the layers of a streamed model on disk, so that they are measured once.
    """

    size_spec: SizeSpec
    lm: LanguageModel
    layer_sets: Sequence[LayerSet]
    problems: Mapping[str, Problem] = field(default_factory=dict)
    data: Calibration | None = None
    needs: Collection[type[Statistic]] | None = None
    once: bool = False

    @property
    def groups(self) -> list[SolveGroup]:
        """The groups of the last alternative of each set, which is used unless predicted losses are compared."""
        return [group for layer_set in self.layer_sets for group in layer_set.joint]

    def each_group(self, label: str) -> Iterator[tuple[SolveGroup, Mapping[str, Problem]]]:
        """Yield every group of all alternatives with the problems of its matrices, by name.

        Args:
            label: the description of the progress.
        """
        groups = all_groups(self.layer_sets)
        if self.needs is None:
            for group in self.track(groups, label):
                yield group, self.problems
            return
        calibrate = choose_planning(self.lm, self.data, self.needs, self.once)
        for group, parts in iterate_problems(groups, lambda group: group.sites, calibrate, self.data, label):
            assert parts is not None
            yield group, problems_by_matrix(group, parts)
            # Their memory is needed to measure the next layers.
            del parts

    @property
    def track(self) -> Track:
        """Shows progress."""
        return silent if self.data is None else self.data.track


class AllocationResult(NamedTuple):
    """The output of an allocator.

    Args:
        plan: the method of each group of layers, by its name.
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
    def plan(self, request: AllocationRequest) -> AllocationResult:
        """Choose a method with a size for every group of layers, or None to keep it dense.

        Raises:
            UserError: the budget does not fit the matrices, or data is needed and missing.
        """

    def supports(self, method: Method) -> bool:
        """Return whether the allocator supports `method`."""
        return True

    def stores_rows(self, method: Method) -> bool:
        """Return whether the methods of the plan store single rows (`Method.stores_rows`)."""
        return method.stores_rows

    def plan_from_shapes(self, request: AllocationRequest) -> Plan:
        """Return the plan that follows from shapes; if it also depends on weights or data, the methods have no size."""
        return {group.name: request.size_spec.method for group in request.groups}

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        """True if the allocator compares predicted losses, which need input and gradient covariances."""
        return False

    def needs_statistics(self, size_spec: SizeSpec) -> bool:
        """True if planning needs statistics, which must then be collected before the first matrix is solved."""
        return self.needs_losses(size_spec)

    def needs_data(self, size_spec: SizeSpec) -> bool:
        """True if the allocator needs calibration data even for a method that needs none."""
        return False


class Uniform(Allocator):
    """Gives every matrix the method's own size, or the same fraction of its bytes."""

    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.currency == "latency" and size_spec.keep is not None:
            raise must_be("allocate", "spectrum where currency is latency", "uniform")
        check_unused(size_spec)
        check_size(size_spec)
        check_one_method(size_spec, "uniform")

    def plan(self, request: AllocationRequest) -> AllocationResult:
        return AllocationResult(uniform_plan(request))

    def stores_rows(self, method: Method) -> bool:
        """Return whether the methods of the plan store single rows (`Method.stores_rows`)."""
        return method.stores_rows

    def plan_from_shapes(self, request: AllocationRequest) -> Plan:
        return uniform_plan(request)


def check_one_method(size_spec: SizeSpec, allocate: str) -> None:
    """Raise UserError if the step is to choose among methods, which only `spectrum` does."""
    if isinstance(size_spec.method, AnyOf):
        raise must_be("allocate", f"spectrum where the method is {size_spec.method.name}", allocate)


def uniform_plan(request: AllocationRequest) -> Plan:
    """Return the uniform plan: for every group of layers the unchanged method, or the method sized to `keep`."""
    method, keep = request.size_spec.method, request.size_spec.keep
    if keep is None:
        return {group.name: method for group in request.groups}
    return equal_fractions(request, method, keep)


def equal_fractions(request: AllocationRequest, method: Method, keep: float | Mapping[str, float]) -> Plan:
    """Return the plan that gives every matrix the same fraction of its bytes.

    Args:
        request: the model and its matrices.
        method: the method without a size.
        keep: the fraction, or that of each kind of layer.

    Raises:
        UserError: the method has no sizes so small.
    """
    plan: Plan = {}
    for budget in split_budget(keep, request.layer_sets):
        groups = [group for layer_set in budget.layer_sets for group in layer_set.joint]
        shapes = {group.name: solved_shape(group, method) for group in groups}
        counts = {group.name: group.count for group in groups}
        stored = stored_fractions(budget.layer_sets)
        with budget.in_errors():
            plan |= allocate_uniform(method, shapes, budget.keep, request.lm.dtype, stored, counts)
    return plan
