"""The results of a step on a streamed model so far, in the files of its parts, by which a killed run goes on.

A part of the model is finished if its file has been written, and its record says that all groups of layers in it were
solved by the methods of the plan. There is no other list of what is finished. Of several processes, the first one reads
and writes these files.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from laconic.allocate import Plan, plan_to_config
from laconic.compress.replacing import GroupResult
from laconic.compress.solve_groups import SolveGroup, part_of
from laconic.model import LanguageModel
from laconic.model.loans_parts import read_records
from laconic.processes import on_rank_zero


class ProgressLog:
    """The files of one step in the scratch folder of a streamed model; nothing is written for a model in memory.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._loans = lm.loans

    def resume(self, groups: Sequence[SolveGroup], plan: Plan) -> dict[str, GroupResult]:
        """Find the parts that an earlier run of the same step finished, and return the results of their groups.

        The statistics of the other parts are then measured as if nothing were finished, and each finished part is
        taken over when its turn comes.

        Args:
            groups: the groups to solve.
            plan: the method of each group, by its name.

        Returns:
            The results by the name of the group.

        Raises:
            UserError: the file of a part is damaged.
        """
        if self._loans is None:
            return {}
        expected: dict[str, dict[str, object]] = {}
        for group in groups:
            expected.setdefault(part_of(group), {})[group.name] = _method_of(group, plan)
        written = on_rank_zero(read_records)(self._loans.scratch)
        finished = {part: written[part] for part, methods in expected.items() if _methods_in(written, part) == methods}
        self._loans.finished = finished
        results = [(name, entry) for record in finished.values() for name, entry in record.items()]
        return {name: GroupResult(name, entry["sizes"], entry["tokens"]) for name, entry in results}

    def add(self, group: SolveGroup, plan: Plan, result: GroupResult) -> None:
        """Keep the result of a group in the record of its part, which is written with the part.

        Args:
            group: the group.
            plan: the method of each group, by its name.
            result: the result.
        """
        if self._loans is not None:
            entry = {"method": _method_of(group, plan), "sizes": result.sizes, "tokens": result.tokens}
            self._loans.record(part_of(group), {result.group: entry})


def find_finished_parts(lm: LanguageModel, expected: Mapping[str | None, Collection[str]]) -> None:
    """Let the next pass take over the parts that an earlier run of the same step finished.

    Args:
        lm: a streamed model.
        expected: the keys of the record of each part once it is finished, by the path of the part.

    Raises:
        UserError: the file of a part is damaged.
    """
    assert lm.loans is not None
    written = on_rank_zero(read_records)(lm.loans.scratch)
    lm.loans.finished = {
        path: record for path, record in written.items() if path in expected and record.keys() == set(expected[path])
    }


def _method_of(group: SolveGroup, plan: Plan) -> object:
    """The method of a group as JSON values."""
    return json.loads(json.dumps(plan_to_config({group.name: plan[group.name]})[group.name]))


def _methods_in(written: Mapping[str, Mapping[str, Any]], part: str) -> Mapping[str, object] | None:
    """The methods in the record of a part; None if it was not written."""
    return None if part not in written else {name: entry.get("method") for name, entry in written[part].items()}
