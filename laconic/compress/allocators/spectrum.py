"""Allocation by predicted losses, corrected by measured losses, with a fall-back to uniform allocation.

`spectrum` spends the budget where it lowers the predicted loss most per unit of cost (`laconic.allocate.spectrum`).

The predicted loss of a matrix is a second-order approximation that assumes that all other matrices are unchanged. In
fact the errors of early blocks propagate through all later blocks, and large errors grow faster than quadratically. If
every matrix loses half of its weights, the first block may cost twice its prediction, and the last block about its
prediction. A plan that uses only the predictions therefore compresses the first blocks too much.

For a budget in bytes and with calibration rows, `spectrum` and `global` correct the predictions. First the uniform plan
is applied to a copy of the model, and the predicted losses of each block are multiplied by the ratio of its measured to
its predicted loss. Then the resulting plan is compared with the uniform plan on other calibration rows. Differences
within the noise are ignored: correction factors that may be due to chance are 1, and the uniform plan is chosen only if
it is better by more than one standard error.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import NamedTuple

import torch

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator, uniform_plan
from laconic.compress.allocators.experts import add_candidates, check_currency
from laconic.compress.allocators.smallest_sizes import check_smallest_sizes
from laconic.compress.checks import SizeSpec, check_size, check_workload
from laconic.compress.kl_metric import ROWS, ROWS_OF_ONE, Divergences, KLMetric, shrink_estimates, split_halves
from laconic.compress.pricing import CandidatesByGroup, CountedPricing, LatencyPricing, Pricing
from laconic.compress.replacing import replace_group, solve_matrices
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import SolveGroup, all_groups, planned_groups
from laconic.errors import Notice, UserError, must_be
from laconic.formats import Format
from laconic.methods import Candidate, Candidates, Method
from laconic.model import Batch, LanguageModel

Loss = Callable[[SolveGroup, Format], float]
"""The predicted loss of a matrix that is solved by itself in a format, in nats."""

LEAST_FACTOR = 1 / 4
"""Smallest correction factor, so that noise in a measurement cannot make a block free."""


STREAMED = (
    "A streamed model has no copy to measure: `allocate: spectrum` plans from predicted losses alone, and its plan may "
    "differ from that in memory; compare the result with allocate: uniform."
)


class CompressedCopy(NamedTuple):
    """A plan applied to a copy of a model.

    Args:
        lm: the copy.
        losses: predicted loss of every group in nats per prediction, by name.
    """

    lm: LanguageModel
    losses: dict[str, float]


def compress_copy(request: AllocationRequest, plan: Plan, loss: Loss) -> CompressedCopy:
    """Apply a plan to a copy of the model, which shares unchanged tensors with the original.

    Args:
        request: the model and its problems.
        plan: the plan.
        loss: the predicted loss of a matrix in a format.
    """
    copy, losses = request.lm.shallow_copy(), {}
    with evaluating(copy):
        for group in request.track(planned_groups(plan, request.layer_sets), "Compressing a copy"):
            method = plan[group.name]
            losses[group.name] = 0.0
            if method is not None:
                solved = solve_matrices(copy, group, method, request.problems)
                wholes = _add_losses(losses, group, solved, loss)
                replace_group(copy, group, wholes, request.problems)
    return CompressedCopy(copy, losses)


def _add_losses(losses: dict[str, float], group: SolveGroup, wholes: Iterable[Format], loss: Loss) -> Iterator[Format]:
    """Yield the compressed matrices of a group, and add the predicted loss of each to that of the group."""
    for matrix, whole in zip(group.matrices, wholes, strict=True):
        losses[group.name] += loss(matrix, whole)
        yield whole


def factors(request: AllocationRequest, compressed: CompressedCopy, rows: Sequence[Batch]) -> Mapping[str, float]:
    """Compute the ratio of measured to predicted loss of each block, relative to the mean over blocks.

    The measured loss of a block is the fall of the KL divergence when only this block gets its original matrices back.
    With few texts it is noisy, so each ratio is shrunk towards the mean (`shrink_estimates`).

    Args:
        request: the budget, the model and its matrices.
        compressed: a copy of the model with a plan applied, and the predicted loss of each group.
        rows: calibration rows that are not used to compare plans.

    Returns:
        The factor of each block, at least `LEAST_FACTOR`; empty if the differences may be due to chance.
    """
    metric = KLMetric(request.lm, rows)
    blocks: dict[str, list[SolveGroup]] = defaultdict(list)
    for group in request.groups:
        blocks[block_name(group)].append(group)
    losses = {block: sum(compressed.losses[group.name] for group in groups) for block, groups in blocks.items()}
    blocks = {block: groups for block, groups in blocks.items() if losses[block] > 0}
    with evaluating(request.lm), evaluating(compressed.lm):
        compressed_kl = metric.each(compressed.lm)
        restored = (_restore_blocks(request.lm, compressed.lm, groups) for groups in blocks.values())
        gains = [metric.each(lm).gain(compressed_kl) for lm in restored]
    predicted = torch.tensor([losses[block] for block in blocks], dtype=torch.float64)
    cost = torch.tensor([gain.mean for gain in gains], dtype=torch.float64) / predicted
    error = torch.tensor([gain.error for gain in gains], dtype=torch.float64) / predicted
    mean_ratio, shrunk = shrink_estimates(cost, error)
    if not 0 < mean_ratio < inf or not (shrunk != mean_ratio).any():
        return {}
    return dict(zip(blocks, (shrunk / mean_ratio).clamp(min=LEAST_FACTOR).tolist(), strict=True))


def block_name(group: SolveGroup) -> str:
    """Return the path of the block that a group is in, or the group's own name if it is outside all blocks."""
    return group.sites[0].block or group.name


def measure_divergences(request: AllocationRequest, compressed: CompressedCopy, rows: Sequence[Batch]) -> Divergences:
    """Measure KL(original ‖ changed) of each text in `rows`, for the model that a plan was applied to."""
    with evaluating(request.lm), evaluating(compressed.lm):
        return KLMetric(request.lm, rows).each(compressed.lm)


def _restore_blocks(original: LanguageModel, changed: LanguageModel, groups: Sequence[SolveGroup]) -> LanguageModel:
    """A copy of `changed` in which `groups` have their original matrices."""
    copy = changed.shallow_copy()
    for site in (site for group in groups for site in group.sites):
        for path, module in original.modules_of(site).items():
            copy.model.set_submodule(path, module)
    return copy


ALLOCATED = "allocated"
"""Key in a step's record for the chosen allocation and the held-out KL divergence of both."""

UNIFORM = "uniform"

Factors = Mapping[str, float]
"""Ratio of measured to predicted loss by block, relative to the mean over blocks; missing blocks have the factor 1."""


def allocate_corrected(
    request: AllocationRequest, allocation: str, make_plan: Callable[[Factors], AllocationResult], loss: Loss
) -> AllocationResult:
    """Plan with corrected losses, or take the uniform plan if its held-out KL divergence is clearly lower.

    One half of the calibration rows is used to measure the factors, the other half to compare the two plans. Nothing is
    measured if there are fewer than four rows, or if matrices are pruned already, because the uniform plan then takes a
    different number of bytes.

    Args:
        request: the budget, the model and its matrices.
        allocation: its name in the record, `spectrum` or `global`.
        make_plan: makes the plan from the factor of each block.
        loss: the predicted loss of a group in a format, in nats per prediction.

    Returns:
        The chosen plan; its record says under `ALLOCATED` which of the two it is.
    """
    matrices = (matrix for group in request.groups for matrix in group.matrices)
    pruned = any(request.problems[matrix.name].stats.support is not None for matrix in matrices)
    rows = None
    if request.data is not None and not pruned:
        rows = split_halves(request.data.batches, ROWS_OF_ONE if request.lm.task.predicts_once_per_row else ROWS)
    if rows is None:
        return make_plan({})
    uniform = uniform_plan(request)
    uniform_copy = compress_copy(request, uniform, loss)
    corrected = make_plan(factors(request, uniform_copy, rows.measured))
    corrected_kl = measure_divergences(request, compress_copy(request, corrected.plan, loss), rows.judging)
    uniform_kl = measure_divergences(request, uniform_copy, rows.judging)
    use_uniform = uniform_kl.beats(corrected_kl)
    measured = {UNIFORM: uniform_kl.mean, allocation: corrected_kl.mean}
    record = {ALLOCATED: {"taken": UNIFORM if use_uniform else allocation, "kl": measured}}
    return AllocationResult(uniform, None, record) if use_uniform else corrected._replace(record=record)


class Spectrum(Allocator):
    """Spends the budget where it lowers the predicted loss most per unit of cost."""

    def check(self, size_spec: SizeSpec) -> None:
        if size_spec.error is not None:
            raise must_be("error", "left out unless allocate is threshold", size_spec.error)
        if size_spec.currency == "latency":
            if isinstance(size_spec.keep, Mapping):
                requirement = "one number where currency is latency, which is that of the whole model"
                raise must_be("keep", requirement, dict(size_spec.keep))
        else:
            check_workload(size_spec)
        check_size(size_spec)
        if size_spec.keep is None:
            raise UserError(
                f"allocate: spectrum divides keep among the matrices, but '{size_spec.method.name}' has a size of its "
                "own; give keep in place of that size, or leave allocate out."
            )

    def supports(self, method: Method) -> bool:
        return not method.has_size

    def needs_losses(self, size_spec: SizeSpec) -> bool:
        return True

    def plan_from_shapes(self, request: AllocationRequest) -> Plan:
        """As the base class.

        Raises:
            UserError: the smallest candidates of all layers cost more than `keep`, or the currency counts work and
                experts are targeted.
        """
        check_currency(request.size_spec.currency, request.layer_sets)
        check_smallest_sizes(request)
        return super().plan_from_shapes(request)

    def plan(self, request: AllocationRequest) -> AllocationResult:
        candidates: dict[str, Candidates] = {}
        for group, problems in request.each_group("Decomposing the layers"):
            own = {}
            for matrix in group.matrices:
                problem = problems[matrix.name]
                # A streamed model is on loan in float32, and sizes are those of the dtype that it is stored in.
                weight = problem.weight.to(request.lm.dtype)
                own[matrix.name] = request.size_spec.method.candidates(weight, problem.stats)
                del problem
            del problems  # Their memory is needed to measure the next layers.
            candidates |= own
            candidates[group.name] = add_candidates(list(own.values()))
        if request.size_spec.currency == "bytes" and request.calibrate is not None:
            warnings.warn(STREAMED, Notice, stacklevel=2)
        if request.size_spec.currency != "bytes" or request.calibrate is not None:
            # In other currencies the uniform plan has another cost, so the two plans cannot be compared. A model that
            # does not fit into memory is not copied to measure the blocks.
            return _spend_budget(request, candidates, {})
        make_plan = partial(_spend_budget, request, candidates)
        return allocate_corrected(request, "spectrum", make_plan, partial(_loss, candidates))


def _spend_budget(request: AllocationRequest, candidates: CandidatesByGroup, factors: Factors) -> AllocationResult:
    """The plan with the least predicted loss within each budget; losses are multiplied by the factor of their block."""
    size_spec = request.size_spec
    assert size_spec.keep is not None, "a size of the method's own was refused"
    pricing: Pricing = CountedPricing(size_spec.currency)
    if size_spec.currency == "latency":
        pricing = LatencyPricing(request.lm, size_spec.workload, request.problems, request.track)
    factor_of = {group.name: factors.get(block_name(group), 1.0) for group in all_groups(request.layer_sets)}
    corrected = {
        name: Candidates(tuple(replace(option, loss=option.loss * factor) for option in candidates[name].all))
        for name, factor in factor_of.items()
    }
    chosen: dict[str, Candidate] = {}
    for budget in split_budget(size_spec.keep, request.layer_sets):
        with budget.in_errors():
            chosen |= pricing.spend(budget.layer_sets, corrected, budget.keep)
    predicted = sum(candidate.loss / factor_of[name] for name, candidate in chosen.items())
    return AllocationResult({name: candidate.method for name, candidate in chosen.items()}, predicted)


def _loss(candidates: CandidatesByGroup, group: SolveGroup, whole: Format) -> float:
    """The least predicted loss among candidates with at most the bytes of `whole`, or that of the smallest one."""
    offered = candidates[group.name].all
    within = [candidate.loss for candidate in offered if candidate.nbytes <= whole.nbytes()]
    return min(within) if within else min(offered, key=lambda candidate: candidate.nbytes).loss
