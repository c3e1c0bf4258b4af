"""Solve groups of layers, and replace the layers by the solutions.

Several processes divide the groups of each part of a streamed model: each solves some, and all get all solutions. Every
process solves all groups of a model in memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from laconic import processes
from laconic.allocate import Plan
from laconic.calibrate import LayerStats, Problem
from laconic.compress.fitted import as_solved
from laconic.compress.progress_log import ProgressLog
from laconic.compress.replacing import (
    GroupResult,
    count_expert_tokens,
    finite_weight,
    free_replaced,
    replace_group,
    solve_matrices,
)
from laconic.compress.solve_groups import SolveGroup, part_of
from laconic.compress.solving import problems_by_matrix
from laconic.formats import Format
from laconic.methods import Method
from laconic.model import LanguageModel

Finish = Callable[[SolveGroup, Iterable[Format], Mapping[str, Problem]], None]
"""Replaces the layers of a group by its compressed matrices, given with its problems by the name of the matrix."""
Measured = Iterable[tuple[SolveGroup, list[Problem] | None]]
"""Groups in the order in which they are solved, with the problems of their layers, or None if they are known before."""


class _Waiting(NamedTuple):
    """A group whose layers are replaced when all groups of its part are solved."""

    group: SolveGroup
    problems: Mapping[str, Problem]


def solve_and_replace(
    lm: LanguageModel, groups: Sequence[SolveGroup], plan: Plan, measured: Measured, problems: Mapping[str, Problem]
) -> dict[str, GroupResult]:
    """Solve groups by the methods of a plan, and replace their layers.

    Args:
        lm: the model, changed in place. The part of a streamed model that a group is in is on loan when it comes.
        groups: all groups that the plan compresses, in order.
        plan: the method of each group, by its name.
        measured: the groups to solve, with their problems.
        problems: the problems of the groups that come without, by the name of the matrix.

    Returns:
        The results by the name of the group.

    Raises:
        UserError: a weight is not finite, or the method cannot solve a matrix.
    """
    log, results = ProgressLog(lm), dict[str, GroupResult]()

    def finish(group: SolveGroup, wholes: Iterable[Format], solved: Mapping[str, Problem]) -> None:
        sizes = replace_group(lm, group, wholes, solved)
        results[group.name] = GroupResult(group.name, sizes, count_expert_tokens(group, solved))
        log.add(group, plan, results[group.name])

    if lm.loans is not None and processes.world_size() > 1:
        _solve_divided(lm, groups, plan, measured, finish)
        return results
    for group, parts in measured:
        solved = problems if parts is None else problems_by_matrix(group, parts)
        method = _method_of(group, plan)
        if group.stack is None:
            problem = solved[group.name]
            given = as_solved(group, method, finite_weight(lm, group, problem), problem.stats)
            finish(group, [method.compress(*given)], solved)
            del given
            del problem
        else:
            finish(group, solve_matrices(lm, group, method, solved, drop_solutions=True), solved)
        del parts, solved  # Their memory is needed for the next layers.
        free_replaced(lm)
    return results


def _method_of(group: SolveGroup, plan: Plan) -> Method:
    method = plan[group.name]
    assert method is not None, "a group that stays dense is not solved"
    return method


def _solve_divided(
    lm: LanguageModel, groups: Sequence[SolveGroup], plan: Plan, measured: Measured, finish: Finish
) -> None:
    """Solve the groups of this process, and replace all groups of a part when all processes have solved theirs.

    Args:
        lm: the model, changed in place.
        groups: all groups that the plan compresses, in order.
        plan: the method of each group, by its name.
        measured: the groups to solve, with their problems.
        finish: replaces the layers of a group.
    """
    by_part: dict[str, list[SolveGroup]] = {}
    for group in groups:
        by_part.setdefault(part_of(group), []).append(group)
    waiting: list[_Waiting] = []
    own: dict[str, list[Format]] = {}
    for group, parts in measured:
        assert parts is not None, "a streamed model is measured part by part"
        together = by_part[part_of(group)]
        solved = problems_by_matrix(group, parts)
        if divide_groups(together, processes.world_size())[group.name] == processes.rank():
            solutions = solve_matrices(
                lm, group, _method_of(group, plan), solved, drop_solutions=group.stack is not None
            )
            own[group.name] = [whole.to("cpu") for whole in solutions]
        waiting.append(_Waiting(group, {name: _without_matrices(problem) for name, problem in solved.items()}))
        del parts, solved
        if group is together[-1]:
            found = {name: wholes for share in processes.all_gather(own) for name, wholes in share.items()}
            for each in waiting:
                finish(each.group, [whole.to(lm.device) for whole in found.pop(each.group.name)], each.problems)
                free_replaced(lm)
            waiting, own = [], {}


def _without_matrices(problem: Problem) -> Problem:
    """A solved problem without its weight and its moments. Layers are replaced with the rest."""
    stats = LayerStats(token_count=problem.stats.token_count)
    return Problem(weight=torch.empty(0, 0), stats=stats, means=problem.means)


def divide_groups(groups: Sequence[SolveGroup], count: int) -> dict[str, int]:
    """Divide groups among processes, so that each has about the same work.

    Groups with the same input go to the same process, which computes what they share once.

    Args:
        groups: the groups.
        count: the number of processes.

    Returns:
        The rank of the process that solves each group, by the name of the group.
    """
    by_input: dict[str, list[SolveGroup]] = {}
    for group in groups:
        by_input.setdefault(group.sites[0].input, []).append(group)
    work = [0] * count
    owners: dict[str, int] = {}
    for together in sorted(by_input.values(), key=_work, reverse=True):
        owner = work.index(min(work))
        work[owner] += _work(together)
        owners |= {group.name: owner for group in together}
    return owners


def _work(groups: Sequence[SolveGroup]) -> int:
    """The number of multiplications of the products of each matrix with its covariances."""
    return sum(group.numel * sum(group.shape) for group in groups)
