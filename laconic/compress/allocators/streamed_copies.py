"""Copies of a streamed model that plans are applied to, so that they can be measured.

A copy has the tensors of the model on disk, and its compressed parts in a folder of its own. Its layers are measured
and solved block by block, as those of the model itself are. The first copy also gives the candidates of all layers:
those of a part are written to a file before the part, so that a run that was killed goes on after the last part.

Of several processes, the first one reads and writes these files.

The parts of the copy that is chosen become those of the model, which then need not be solved again.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from laconic import processes
from laconic.allocate import Plan, parse_plan, plan_to_config
from laconic.calibrate import Problem
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.calibrate.measured_once import calibrate_once
from laconic.calibrate.passes import evaluating
from laconic.calibrate.solution_files import SolutionFiles
from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult
from laconic.compress.allocators.corrected import ALLOCATED, COPIES, UNIFORM, CompressedCopy, add_losses
from laconic.compress.progress_log import ProgressLog
from laconic.compress.replacing import GroupResult, count_expert_tokens, free_replaced, replace_group, solve_matrices
from laconic.compress.solve_and_replace import solve_and_replace
from laconic.compress.solve_groups import LayerSet, SolveGroup, all_groups, part_of, planned_groups
from laconic.compress.solving import Calibrate, iterate_problems, problems_by_matrix
from laconic.errors import UserError
from laconic.files import report_unwritable, store_json
from laconic.formats import Format
from laconic.methods import Candidate, Candidates
from laconic.model import LanguageModel
from laconic.model.loans_parts import part_file
from laconic.processes import on_rank_zero

FindCandidates = Callable[[AllocationRequest, SolveGroup, Mapping[str, Problem]], dict[str, Candidates]]
LossWithin = Callable[[Mapping[str, Candidates], SolveGroup, Format], float]

CORRECTED = "corrected"
"""The folder of the copy with the plan by corrected losses; that of the uniform plan is `UNIFORM`."""
CANDIDATES = "candidates"
"""The folder of the files with the candidates of each part."""


def compress_first_copy(
    request: AllocationRequest, plan: Plan, find: FindCandidates, loss: LossWithin
) -> tuple[CompressedCopy, dict[str, Candidates]]:
    """Apply a plan to a copy of a streamed model, and find the candidates of all groups in the same pass.

    Args:
        request: the model, its layers and the calibration data.
        plan: the plan.
        find: finds the candidates of a group, and of its matrices.
        loss: the predicted loss of a matrix in a format, from its candidates.

    Returns:
        The copy, and the candidates of every group of all alternatives by its name.

    Raises:
        UserError: a part or a file cannot be written, or the layers cannot be measured.
    """
    copy, layer_sets = _copy_of(request, UNIFORM)
    log, groups = ProgressLog(copy), all_groups(layer_sets)
    log.resume([group for group in planned_groups(plan, layer_sets) if plan[group.name] is not None], plan)
    files = _CandidateFiles(copy)
    candidates, losses = files.resume(groups)
    left = Counter(part_of(group) for group in groups)
    calibrate = _calibrate(request, copy)
    with evaluating(copy):
        for group, parts in iterate_problems(groups, lambda group: group.sites, calibrate, request.data, "Measuring"):
            assert parts is not None
            problems = problems_by_matrix(group, parts)
            found = find(request, group, problems)
            candidates[group.name] = found[group.name]
            method = plan.get(group.name)
            if method is not None:
                losses[group.name] = 0.0
                solved = solve_matrices(copy, group, method, problems, drop_solutions=group.stack is not None)
                wholes = add_losses(losses, group, solved, partial(loss, found))
                sizes = replace_group(copy, group, wholes, problems)
                log.add(group, plan, GroupResult(group.name, sizes, count_expert_tokens(group, problems)))
                del solved, wholes
            left[part_of(group)] -= 1
            if not left[part_of(group)]:
                # The pass writes the part when it is asked for the next one.
                files.write([other for other in groups if part_of(other) == part_of(group)], candidates, losses)
            del parts, problems  # Their memory is needed to measure the next layers.
            free_replaced(copy)
    losses = {group.name: losses.get(group.name, 0.0) for group in planned_groups(plan, layer_sets)}
    candidates, losses = processes.broadcast((candidates, losses))
    return CompressedCopy(copy, plan, losses), candidates


def compress_second_copy(request: AllocationRequest, plan: Plan) -> CompressedCopy:
    """Apply a plan to another copy of a streamed model; its losses are not predicted.

    Args:
        request: the model, its layers and the calibration data.
        plan: the plan.

    Raises:
        UserError: a part cannot be written, or the layers cannot be measured.
    """
    copy, layer_sets = _copy_of(request, CORRECTED)
    groups = [group for group in planned_groups(plan, layer_sets) if plan[group.name] is not None]
    ProgressLog(copy).resume(groups, plan)
    calibrate = _calibrate(request, copy)
    measured = iterate_problems(groups, lambda group: group.sites, calibrate, request.data, "Compressing the layers")
    with evaluating(copy):
        solve_and_replace(copy, groups, plan, measured, {})
    return CompressedCopy(copy, plan, {})


def take_over_copy(lm: LanguageModel, result: AllocationResult) -> None:
    """Make the parts of the copy with the chosen plan those of a streamed model, and delete the other copy.

    Args:
        lm: the model.
        result: the chosen plan.

    Raises:
        UserError: the files cannot be moved.
    """
    if lm.loans is not None:
        taken = result.record.get(ALLOCATED, {}).get("taken")
        # Parts without a structure cannot be restored, and are solved again.
        taken = None if lm.loans.structures is None else taken
        on_rank_zero(_take_over)(lm.loans.scratch, taken)


def _take_over(scratch: Path, taken: str | None) -> None:
    copies = scratch / COPIES
    if taken is not None:
        folder = copies / (UNIFORM if taken == UNIFORM else CORRECTED)
        target = part_file(scratch, "").parent
        with report_unwritable(target):
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(part_file(folder, "").parent.glob("*.safetensors")):
                file.replace(target / file.name)
    shutil.rmtree(copies, ignore_errors=True)


def _copy_of(request: AllocationRequest, name: str) -> tuple[LanguageModel, list[LayerSet]]:
    """A copy of a streamed model, with the same layers."""
    loans = request.lm.loans
    assert loans is not None, "a model in memory has its problems in memory"
    copy = replace(request.lm.shallow_copy(), loans=loans.branch(f"{COPIES}/{name}"))
    sites = {site.name: site for site in copy.sites(("*",))}

    def find(group: SolveGroup) -> SolveGroup:
        return replace(group, sites=tuple(sites[site.name] for site in group.sites))

    return copy, [
        LayerSet(tuple(tuple(map(find, groups)) for groups in layer_set.alternatives))
        for layer_set in request.layer_sets
    ]


def _calibrate(request: AllocationRequest, copy: LanguageModel) -> Calibrate:
    assert request.needs is not None, "a model in memory has its problems in memory"
    if request.once and request.data is not None:
        files = SolutionFiles.of(request.lm)
        return partial(calibrate_once, copy, request.data, request.needs, writes=True, files=files)
    return partial(blockwise_calibrate, copy, request.data, request.needs)


class _CandidateFiles:
    """The candidates of the groups in each part, and their predicted losses under the plan of the copy, in files.

    Args:
        lm: the copy.
    """

    def __init__(self, lm: LanguageModel) -> None:
        assert lm.loans is not None
        self._loans = lm.loans

    def resume(self, groups: Sequence[SolveGroup]) -> tuple[dict[str, Candidates], dict[str, float]]:
        """Read the files of all parts that an earlier run finished. A part without a sound file is not finished.

        Args:
            groups: all groups of the model.

        Returns:
            The candidates and the losses, by the name of the group.
        """
        candidates, losses = dict[str, Candidates](), dict[str, float]()
        finished = dict(self._loans.finished or {})
        for part in list(finished):
            found = on_rank_zero(_read)(self._file(part))
            if found is None or found[0].keys() != {group.name for group in groups if part_of(group) == part}:
                del finished[part]
            else:
                candidates, losses = candidates | found[0], losses | found[1]
        self._loans.finished = finished
        return candidates, losses

    def write(
        self, groups: Sequence[SolveGroup], candidates: Mapping[str, Candidates], losses: Mapping[str, float]
    ) -> None:
        """Write the candidates and the losses of all groups in one part.

        Args:
            groups: these groups.
            candidates: the candidates of all groups, by name.
            losses: the losses of all groups that were solved, by name.

        Raises:
            UserError: the file cannot be written.
        """
        content = {
            "candidates": {group.name: _candidates_to_json(candidates[group.name]) for group in groups},
            "losses": {group.name: losses[group.name] for group in groups if group.name in losses},
        }
        on_rank_zero(store_json)(self._file(part_of(groups[0])), content)

    def _file(self, part: str) -> Path:
        return self._loans.scratch / CANDIDATES / f"{part}.json"


def _read(file: Path) -> tuple[dict[str, Candidates], dict[str, float]] | None:
    """The candidates and the losses in the file of a part; None if there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: _read_candidates(lines) for name, lines in content["candidates"].items()}, content["losses"]
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return None


def _candidates_to_json(candidates: Candidates) -> list[dict[str, Any]]:
    return [
        {
            "method": plan_to_config({"": option.method})[""],
            "nbytes": option.nbytes,
            "parameters": option.parameters,
            "products": option.products,
            "loss": option.loss,
        }
        for option in candidates.all
    ]


def _read_candidates(lines: Sequence[Mapping[str, Any]]) -> Candidates:
    return Candidates(
        tuple(
            Candidate(
                method=parse_plan({CANDIDATES: line["method"]}, CANDIDATES)[CANDIDATES],
                nbytes=line["nbytes"],
                parameters=line["parameters"],
                products=tuple((rows, columns) for rows, columns in line["products"]),
                loss=line["loss"],
            )
            for line in lines
        )
    )
