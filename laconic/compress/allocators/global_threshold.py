"""Allocation of sparsity by one threshold for the scores of the weights of all matrices.

Matrices are scored one at a time, so the scores are never in memory together (`laconic.numerics.masks`). The result is
a sparsity for each matrix, and the method then prunes each matrix to its sparsity. No matrix loses more than the
method's `cap`, and every matrix keeps at least one weight. Zeros of earlier pruning stay and are counted.

If the scores are predicted losses and there are calibration rows, they are corrected by the measured loss of each
block, and the uniform plan is used if it is clearly better (`laconic.compress.allocators.corrected`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil, floor

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.allocate import Plan
from laconic.calibrate import GradCovariance, InputCovariance, Problem
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator, uniform_plan
from laconic.compress.allocators.corrected import Factors, allocate_corrected, compress_copy, rows_to_measure
from laconic.compress.checks import SizeSpec, check_size, check_unused
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import SolveGroup, part_of, stored_fractions
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.methods import Method
from laconic.methods.prune.base import UnstructuredPruning
from laconic.numerics.masks import ScoredMatrix, count_pruned, exclude_pruned
from laconic.numerics.moments import check_finite, quadratic_loss
from laconic.numerics.packing import packed_nbytes


class GlobalThreshold(Allocator):
    """Divides a sparsity among matrices by one threshold for the scores of all weights."""

    def check(self, size_spec: SizeSpec) -> None:
        check_unused(size_spec)
        check_size(size_spec)
        require_scores(size_spec.method)

    def supports(self, method: Method) -> bool:
        return isinstance(method, UnstructuredPruning)

    def needs_statistics(self, size_spec: SizeSpec) -> bool:
        return bool(size_spec.method.required_statistics)

    def plan(self, request: AllocationRequest) -> AllocationResult:
        if GradCovariance not in request.size_spec.method.required_statistics:
            # These scores are not predicted losses, so they cannot be compared with measured losses.
            return AllocationResult(_plan_by_threshold(request, {}))

        def make_plan(factors: Factors) -> AllocationResult:
            return AllocationResult(_plan_by_threshold(request, factors))

        rows = rows_to_measure(request)
        if rows is None:
            return make_plan({})
        compress = partial(compress_copy, request, loss=partial(_loss, request))
        return allocate_corrected(request, "global", rows, compress(uniform_plan(request)), make_plan, compress)


def require_scores(method: Method) -> UnstructuredPruning:
    """Return `method` if it scores every weight and selects weights within the whole matrix.

    Raises:
        UserError: it has no scores, or it selects weights within rows or patterns.
    """
    if not isinstance(method, UnstructuredPruning):
        raise UserError(
            f"allocate: global compares weights one by one, and '{method.name}' has no score for each; "
            "use a method like magnitude, wanda or kfac-prune."
        )
    if method.pattern is not None:
        raise UserError(
            f"allocate: global does not apply to the pattern {method.pattern}, which fixes the sparsity of each "
            f"matrix; give {method.name} a sparsity, or leave allocate out."
        )
    if method.within != "matrix":
        raise must_be(f"{method.name}.within", "matrix where allocate is global", method.within)
    return method


def _loss(request: AllocationRequest, group: SolveGroup, whole: Format) -> float:
    problem = request.problems[group.name]
    error = problem.weight.double() - whole.dense().double()
    return quadratic_loss(error, problem.stats[GradCovariance].matrix, problem.stats[InputCovariance].matrix)


def _plan_by_threshold(request: AllocationRequest, factors: Factors) -> Plan:
    """Plan with one threshold for all scores, which are multiplied by the factor of their block."""
    method = require_scores(request.size_spec.method)
    if request.size_spec.keep is None:
        assert method.sparsity is not None, "a pattern was refused, and without a size there is keep"
        return _Pool(method, request.groups, request.problems, factors).plan_for_sparsity(method.sparsity)
    plan: Plan = {}
    for budget in split_budget(request.size_spec.keep, request.layer_sets):
        groups = [group for layer_set in budget.layer_sets for group in layer_set.joint]
        pool = _Pool(method, groups, request.problems, factors)
        with budget.in_errors():
            plan |= pool.plan_for_keep(budget.keep, request.lm.dtype, stored_fractions(budget.layer_sets))
    return plan


@dataclass(frozen=True)
class _Pool:
    """Groups of layers that share one threshold."""

    method: UnstructuredPruning
    groups: Sequence[SolveGroup]
    problems: Mapping[str, Problem]
    factors: Factors

    @property
    def numel(self) -> int:
        return sum(group.numel for group in self.groups)

    def plan_for_sparsity(self, sparsity: float) -> Plan:
        """The plan with this fraction of zeros, or with the present zeros if there are more.

        Raises:
            UserError: the caps do not allow that many zeros.
        """
        zeros = round(sparsity * self.numel)
        if zeros > self._most_zeros:
            largest = floor(1e4 * self._most_zeros / self.numel) / 1e4
            raise must_be(f"{self.method.name}.sparsity", f"at most {largest:.4f}, {self._limit_reason}", sparsity)
        return self._plan_for_zeros(zeros)

    def plan_for_keep(self, keep: float, dtype: torch.dtype, stored: Mapping[str, float]) -> Plan:
        """The plan that keeps this fraction of the bytes; with 1, no matrix is pruned.

        Args:
            keep: the fraction.
            dtype: the dtype that weights are stored in.
            stored: fraction of a group's matrix that counts as its own, by name, for shared parameters; else 1.

        Raises:
            UserError: the caps do not allow that many zeros.
        """
        if keep >= 1:
            return {group.name: None for group in self.groups}
        masks = sum(group.count * packed_nbytes(group.numel // group.count, 1) for group in self.groups)
        dense = sum(group.numel * stored.get(group.name, 1) for group in self.groups) * dtype.itemsize
        kept = floor((keep * dense - masks) / dtype.itemsize)
        if kept < self.numel - self._most_zeros:
            least = ceil(1e4 * ((self.numel - self._most_zeros) * dtype.itemsize + masks) / dense) / 1e4
            raise must_be("keep", f"at least {least:.4f}, {self._limit_reason}", keep)
        zeros = self.numel - min(kept, self.numel)
        # Scores may depend on the sparsity.
        return replace(self, method=self.method.with_sparsity(zeros / self.numel))._plan_for_zeros(zeros)

    @cached_property
    def _matrices(self) -> list[ScoredMatrix]:
        return [self._matrix(group) for group in self.groups]

    @property
    def _most_zeros(self) -> int:
        return sum(max(matrix.cap, matrix.floor) for matrix in self._matrices)

    @property
    def _limit_reason(self) -> str:
        cap = self.method.cap
        return (
            f"as no matrix may lose more than its cap of {cap:g}" if cap < 1 else "as no matrix may lose every weight"
        )

    def _plan_for_zeros(self, zeros: int) -> Plan:
        lost = count_pruned(self._matrices, max(zeros, sum(matrix.floor for matrix in self._matrices)))
        return {group.name: self._method_for(group, count) for group, count in zip(self.groups, lost, strict=True)}

    def _method_for(self, group: SolveGroup, zeros: int) -> Method | None:
        """The method with at least this many zeros in a group, the same number in each of its matrices."""
        each, numel = -(-zeros // group.count), group.numel // group.count
        # If all weights are zero already, nothing is left to prune.
        return self.method.with_sparsity(sparsity_of(each, numel)) if 0 < each < numel else None

    def _matrix(self, group: SolveGroup) -> ScoredMatrix:
        supports = [self.problems[matrix.name].stats.support for matrix in group.matrices]
        pruned = sum(0 if support is None else int((~support).sum()) for support in supports)
        # Rounded up, so that a sparsity equal to the cap is reached over all matrices; at least one weight stays.
        cap = min(ceil(self.method.cap * group.numel - 1e-9), group.numel - group.count)
        return ScoredMatrix(lambda: self._scores(group), cap, pruned)

    def _scores(self, group: SolveGroup) -> Iterator[Float[Tensor, "out in"]]:
        for matrix in group.matrices:
            problem = self.problems[matrix.name]
            error = f"{self.method.name} cannot prune '{matrix.name}', because it has weights that are NaN or infinite."
            check_finite(problem.weight, error)
            scores = self.method.scores(problem.weight, problem.stats)
            if factor := self.factors.get(part_of(group)):
                scores = scores * factor
            yield exclude_pruned(scores, problem.stats.support)


def sparsity_of(zeros: int, numel: int) -> float:
    """Return the decimal fraction with the fewest digits that gives exactly `zeros` zeros among `numel` weights."""
    fractions = (round(zeros / numel, digits) for digits in range(1, 17))
    return next(fraction for fraction in fractions if round(fraction * numel) == zeros)
