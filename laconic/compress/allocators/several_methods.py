"""Plans of several methods: which method each matrix gets, and its size, by losses that are corrected by measured ones.

The predicted losses of methods are too low by different factors, so they cannot be compared as they are. The factors
are measured:

1. Each method alone is applied to a copy of the model, with equal fractions of all matrices. The losses that it
   predicts are multiplied by the ratio of measured to predicted loss of their block.
2. The budget is spent on the candidates of all methods. The plan is applied to a copy. The matrices of each method in
   turn get their original weights back, and the fall of the KL divergence, relative to the prediction, corrects the
   losses of this method again.
3. The second step is repeated until the predictions hold, or the plan does not change, or `ROUNDS` times.

All plans, and those of single methods that may be as good, are compared on other calibration rows. The best one is
taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from laconic.allocate import Plan
from laconic.calibrate.passes import evaluating
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, equal_fractions
from laconic.compress.allocators.corrected import (
    ALLOCATED,
    CompressedCopy,
    Ratios,
    compress_copy,
    measure_ratios,
    with_each_restored,
)
from laconic.compress.kl_metric import KLMetric, RowSplit
from laconic.compress.pricing import CandidatesByGroup, loss_within
from laconic.compress.solve_groups import SolveGroup, all_groups, part_of, planned_groups
from laconic.errors import UserError
from laconic.methods import Candidate, Candidates, Method
from laconic.methods.any_of import is_size_of, of_method
from laconic.methods.registry import method_text

Choose = Callable[[CandidatesByGroup], Mapping[str, Candidate]]
"""Spends the budget on candidates; returns the chosen ones by the name of their group."""

ROUNDS = 4
"""The most plans of several methods that are tried."""
CLOSE = 1.25
"""Predictions within this factor of the measured losses hold."""
MOST_AT_ONCE = 4.0
"""The largest factor, and its inverse the smallest one, by which one round corrects a method."""
PROMISING = 2.0
"""A plan of one method is tried if its corrected loss is less than this many times that of several methods."""


class Trial(NamedTuple):
    """A plan and what was measured.

    Args:
        name: its name in the record.
        chosen: the candidates with corrected losses, by the name of their group.
        kl: its divergence on the rows that compare plans, in nats per prediction.
    """

    name: str
    chosen: Mapping[str, Candidate]
    kl: float

    @property
    def plan(self) -> Plan:
        """The method of each group."""
        return _plan_of(self.chosen)


def plan_of_several(
    request: AllocationRequest,
    candidates: CandidatesByGroup,
    rows: RowSplit,
    choose: Choose,
    methods: Sequence[Method],
) -> AllocationResult:
    """Choose a method and a size for every group of layers.

    Args:
        request: the budget, the model and its matrices.
        candidates: the candidates of all methods for each group, by its name.
        rows: the calibration rows to measure on.
        choose: spends the budget.
        methods: the methods without sizes.

    Returns:
        The best plan. Its record says under `ALLOCATED` what the tried plans measured.

    Raises:
        UserError: even the smallest candidates exceed the budget.
    """
    search = _Search(request, candidates, rows, choose, methods)
    best = min(trials := list(search.trials()), key=lambda trial: trial.kl)
    record = {ALLOCATED: {"taken": best.name, "kl": {trial.name: trial.kl for trial in trials}}}
    return AllocationResult(best.plan, sum(option.loss for option in best.chosen.values()), record)


@dataclass
class _Search:
    """The search for a plan; arguments as of `plan_of_several`.

    Args:
        factors: what the predicted losses of each method are multiplied by after step 1, beyond the ratios of blocks.
    """

    request: AllocationRequest
    candidates: CandidatesByGroup
    rows: RowSplit
    choose: Choose
    methods: Sequence[Method]
    factors: dict[Method, float] = field(default_factory=dict)

    def trials(self) -> Iterator[Trial]:
        """Try the plans of several methods, then those of single ones that may be as good."""
        lm = self.request.lm
        judge, metric = KLMetric(lm, self.rows.judging), KLMetric(lm, self.rows.measured)
        ratios = {method: self._measure_alone(method) for method in self.methods}
        plans: list[Plan] = []
        for number in range(1, ROUNDS + 1):
            chosen = self.choose(self._corrected(ratios))
            if (plan := _plan_of(chosen)) in plans:
                break
            plans.append(plan)
            copy = self._apply(plan)
            yield Trial(f"round {number}", chosen, self._divergence(judge, copy))
            if not self._update_factors(metric, copy, chosen):
                break
        least = sum(option.loss for option in self.choose(self._corrected(ratios)).values())
        for method in self.methods:
            corrected = self._corrected(ratios)
            try:
                chosen = self.choose({name: of_method(offered, method) for name, offered in corrected.items()})
            except UserError:
                # This method cannot reach the budget alone.
                continue
            plan, loss = _plan_of(chosen), sum(option.loss for option in chosen.values())
            if loss <= PROMISING * least and plan not in plans:
                yield Trial(method_text(method), chosen, self._divergence(judge, self._apply(plan)))

    def _measure_alone(self, method: Method) -> Ratios:
        """The ratios of measured to predicted loss of one method, with equal fractions of all matrices."""
        own = {name: of_method(offered, method) for name, offered in self.candidates.items()}
        copy = compress_copy(self.request, _near_budget(self.request, method), partial(loss_within, own))
        return measure_ratios(self.request, copy, self.rows.measured)

    def _corrected(self, ratios: Mapping[Method, Ratios]) -> dict[str, Candidates]:
        """All candidates with corrected losses."""
        parts = {group.name: part_of(group) for group in all_groups(self.request.layer_sets)}

        def correct(option: Candidate, part: str) -> Candidate:
            method = self._method_of(option)
            if method is None:
                return option
            ratio = ratios[method].by_block.get(part, ratios[method].mean)
            return replace(option, loss=option.loss * ratio * self.factors.get(method, 1.0))

        return {
            name: Candidates(tuple(correct(option, part) for option in self.candidates[name].all))
            for name, part in parts.items()
        }

    def _method_of(self, option: Candidate) -> Method | None:
        """The method, without its size, that offers a candidate; None for the unchanged matrix."""
        sized = option.method
        return None if sized is None else next(method for method in self.methods if is_size_of(sized, method))

    def _apply(self, plan: Plan) -> CompressedCopy:
        return compress_copy(self.request, plan, lambda *_: 0.0)

    def _divergence(self, metric: KLMetric, copy: CompressedCopy) -> float:
        with evaluating(self.request.lm, copy.lm):
            return metric(copy.lm)

    def _update_factors(self, metric: KLMetric, copy: CompressedCopy, chosen: Mapping[str, Candidate]) -> bool:
        """Correct the factor of each method in a plan by what was measured; return whether one of them was wrong."""
        groups: dict[Method, list[SolveGroup]] = {}
        for group in planned_groups(copy.plan, self.request.layer_sets):
            method = self._method_of(chosen[group.name])
            if method is not None:
                groups.setdefault(method, []).append(group)
        lm = self.request.lm
        with evaluating(lm, copy.lm):
            present, *restored = map(metric.each, with_each_restored(lm, copy.lm, groups.values()))
        wrong = False
        for (method, members), divergences in zip(groups.items(), restored, strict=True):
            gain, predicted = divergences.gain(present), sum(chosen[group.name].loss for group in members)
            # A gain within its error may be due to chance.
            if predicted > 0 and gain.mean > gain.error:
                ratio = min(max(gain.mean / predicted, 1 / MOST_AT_ONCE), MOST_AT_ONCE)
                self.factors[method] = self.factors.get(method, 1.0) * ratio
                wrong |= not 1 / CLOSE <= ratio <= CLOSE
        return wrong


def _plan_of(chosen: Mapping[str, Candidate]) -> Plan:
    return {name: option.method for name, option in chosen.items()}


def _near_budget(request: AllocationRequest, method: Method) -> Plan:
    """Equal fractions of one method: the requested one, doubled until the method can reach it.

    Raises:
        UserError: the method cannot reach a fraction of 1 either.
    """
    keep = request.size_spec.keep
    assert keep is not None, "a size of the method's own was refused"
    while True:
        try:
            return equal_fractions(request, method, keep)
        except UserError:
            larger = {kind: _doubled(keep[kind]) for kind in keep} if isinstance(keep, Mapping) else _doubled(keep)
            if larger == keep:
                # The fraction is 1, so the method refuses these matrices at any size.
                raise
            keep = larger


def _doubled(keep: float) -> float:
    return min(1.0, 2 * keep)
