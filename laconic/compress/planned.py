"""Compress the layers of a model by a plan, in the order in which they are measured."""

from collections.abc import Mapping, Sequence

from laconic.allocate import Plan
from laconic.calibrate import Calibration, Problem
from laconic.calibrate.passes import evaluating
from laconic.compress.progress_log import ProgressLog
from laconic.compress.replacing import GroupResult, count_expert_tokens, replace_group, solve_matrices
from laconic.compress.solve_groups import SolveGroup
from laconic.compress.solving import Calibrate, iterate_problems, problems_by_matrix
from laconic.model import LanguageModel


def compress_groups(
    lm: LanguageModel,
    plan: Plan,
    groups: Sequence[SolveGroup],
    calibrate: Calibrate | None,
    data: Calibration | None,
    problems: Mapping[str, Problem],
) -> dict[str, GroupResult]:
    """Solve groups of layers, and replace each by its solution. A streamed model goes on where an earlier run stopped.

    Args:
        lm: the model, changed in place.
        plan: the method of each group, by name.
        groups: the groups that have a method, in forward order.
        calibrate: measures layers while others are replaced; None if `problems` has all measurements.
        data: the calibration data; None if there are none.
        problems: the problem of each matrix, by name, if they were measured before.

    Returns:
        The results by the name of the group.

    Raises:
        UserError: a weight is not finite; or as `calibrate`.
    """
    log = ProgressLog(lm)
    results = log.resume(groups, plan)
    in_order = iterate_problems(groups, lambda group: group.sites, calibrate, data, "Compressing the layers")
    # Sequential calibration runs the blocks, and dropout would add noise to its statistics.
    with evaluating(lm):
        for group, parts in in_order:
            solved = problems if parts is None else problems_by_matrix(group, parts)
            method = plan[group.name]
            assert method is not None
            wholes = solve_matrices(lm, group, method, solved, drop_solutions=group.stack is not None)
            sizes = replace_group(lm, group, wholes, solved)
            results[group.name] = GroupResult(group.name, sizes, count_expert_tokens(group, solved))
            log.add(group, plan, results[group.name])
            del parts, solved, wholes  # Their memory is needed for the next layers.
    return results
