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
from laconic.compress.allocators.allocator import Allocated, Allocator, Job
from laconic.compress.allocators.corrected import Factors, allocate_corrected, block_name
from laconic.compress.size_spec import SizeSpec, check_size, check_unused
from laconic.compress.solve_groups import SolveGroup, split_by_group, stored_fractions
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

    def serves(self, method: Method) -> bool:
        return isinstance(method, UnstructuredPruning)

    def needs_statistics(self, size_spec: SizeSpec) -> bool:
        return bool(size_spec.method.required_statistics)

    def plan(self, job: Job) -> Allocated:
        if GradCovariance not in job.size_spec.method.required_statistics:
            # These scores are not predicted losses, so they cannot be compared with measured losses.
            return Allocated(_plan_by_threshold(job, {}))
        return allocate_corrected(
            job, "global", lambda factors: Allocated(_plan_by_threshold(job, factors)), partial(_loss, job)
        )


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
            f"allocate: global has no use for the pattern {method.pattern}, which says what every matrix loses; "
            f"give {method.name} a sparsity, or leave allocate out."
        )
    if method.within != "matrix":
        raise must_be(f"{method.name}.within", "matrix where allocate is global", method.within)
    return method


def _loss(job: Job, unit: SolveGroup, whole: Format) -> float:
    problem = job.problems[unit.name]
    error = problem.weight.double() - whole.dense().double()
    return quadratic_loss(error, problem.stats[GradCovariance].matrix, problem.stats[InputCovariance].matrix)


def _plan_by_threshold(job: Job, factors: Factors) -> Plan:
    """Plan with one threshold for all scores, which are multiplied by the factor of their block."""
    method = require_scores(job.size_spec.method)
    if job.size_spec.keep is None:
        assert method.sparsity is not None, "a pattern was refused, and without a size there is keep"
        return _Pool(method, job.units, job.problems, factors).of(method.sparsity)
    plan: Plan = {}
    for keep, group in split_by_group(job.size_spec.keep, job.groups):
        pool = _Pool(method, [unit for family in group for unit in family[-1]], job.problems, factors)
        plan |= pool.plan_for_keep(keep, job.lm.dtype, stored_fractions(group))
    return plan


@dataclass(frozen=True)
class _Pool:
    """Units that share one threshold."""

    method: UnstructuredPruning
    units: Sequence[SolveGroup]
    problems: Mapping[str, Problem]
    factors: Factors

    @property
    def numel(self) -> int:
        return sum(_numel(unit) for unit in self.units)

    def of(self, sparsity: float) -> Plan:
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
        """The plan that keeps this fraction of the bytes; 1 leaves every matrix as it is.

        Args:
            keep: the fraction.
            dtype: the dtype that weights are stored in.
            stored: fraction of a unit's matrix that counts as its own, by name, for shared parameters; else 1.

        Raises:
            UserError: the caps do not allow that many zeros.
        """
        if keep >= 1:
            return {unit.name: None for unit in self.units}
        masks = sum(packed_nbytes(_numel(unit), 1) for unit in self.units)
        dense = sum(_numel(unit) * stored.get(unit.name, 1) for unit in self.units) * dtype.itemsize
        kept = floor((keep * dense - masks) / dtype.itemsize)
        if kept < self.numel - self._most_zeros:
            least = ceil(1e4 * ((self.numel - self._most_zeros) * dtype.itemsize + masks) / dense) / 1e4
            raise must_be("keep", f"at least {least:.4f}, {self._limit_reason}", keep)
        zeros = self.numel - min(kept, self.numel)
        # Scores may depend on the sparsity.
        return replace(self, method=self.method.with_sparsity(zeros / self.numel))._plan_for_zeros(zeros)

    @cached_property
    def _fields(self) -> list[ScoredMatrix]:
        return [self._field(unit) for unit in self.units]

    @property
    def _most_zeros(self) -> int:
        return sum(max(field.cap, field.floor) for field in self._fields)

    @property
    def _limit_reason(self) -> str:
        cap = self.method.cap
        return (
            f"as no matrix may lose more than its cap of {cap:g}" if cap < 1 else "as no matrix may lose every weight"
        )

    def _plan_for_zeros(self, zeros: int) -> Plan:
        lost = count_pruned(self._fields, max(zeros, sum(field.floor for field in self._fields)))
        return {unit.name: self._sized_method(unit, count) for unit, count in zip(self.units, lost, strict=True)}

    def _field(self, unit: SolveGroup) -> ScoredMatrix:
        support = self.problems[unit.name].stats.support
        gone = 0 if support is None else int((~support).sum())
        # Rounded up, so that a sparsity equal to the cap is reached over all matrices; at least one weight stays.
        cap = min(ceil(self.method.cap * _numel(unit) - 1e-9), _numel(unit) - 1)
        return ScoredMatrix(lambda: self._scores(unit), cap, gone)

    def _scores(self, unit: SolveGroup) -> Iterator[Float[Tensor, "out in"]]:
        problem = self.problems[unit.name]
        check_finite(
            problem.weight,
            f"{self.method.name} cannot prune '{unit.name}', which has weights that are NaN or infinite; "
            "check the model.",
        )
        scores = self.method.scores(problem.weight, problem.stats)
        if factor := self.factors.get(block_name(unit)):
            scores = scores * factor
        yield exclude_pruned(scores, problem.stats.support)

    def _sized_method(self, unit: SolveGroup, lost: int) -> Method | None:
        # A matrix of zeros only has nothing left to prune.
        return self.method.with_sparsity(sparsity_of(lost, _numel(unit))) if 0 < lost < _numel(unit) else None


def sparsity_of(zeros: int, numel: int) -> float:
    """Return the decimal fraction with the fewest digits that gives exactly `zeros` zeros among `numel` weights."""
    fractions = (round(zeros / numel, digits) for digits in range(1, 17))
    return next(fraction for fraction in fractions if round(fraction * numel) == zeros)


def _numel(unit: SolveGroup) -> int:
    return unit.shape[0] * unit.shape[1]
