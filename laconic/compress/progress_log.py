"""The plan of a step on a streamed model and its results so far, in files by which a killed run goes on."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.allocate import parse_plan, plan_to_config
from laconic.calibrate import GradientStatistic, Statistic
from laconic.compress.allocators import AllocationResult
from laconic.compress.solve_groups import SolveGroup
from laconic.files import replacing
from laconic.model import LanguageModel

PLAN, GROUPS = "plan.json", "groups.jsonl"


@dataclass(frozen=True)
class GroupResult:
    """The result of one group of layers.

    Args:
        group: its name.
        sizes: the bytes of its layers afterwards; None if they stayed dense.
        tokens: the calibration tokens of each expert, by the name of the stack.
    """

    group: str
    sizes: Mapping[str, int] | None
    tokens: Mapping[str, list[int]]


class ProgressLog:
    """The files of one step in the scratch folder of a streamed model; nothing is written for a model in memory.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._loans = lm.loans

    def restore(self, lm: LanguageModel, needs: Iterable[type[Statistic]]) -> list[GroupResult]:
        """Take over the parts that an earlier run of the same step wrote, and return the results of their groups.

        Args:
            lm: the model.
            needs: the statistics of the step. If they include gradients, an encoder-decoder starts again: those at the
                end of the encoder were in memory.
        """
        if self._loans is None:
            return []
        if any(issubclass(kind, GradientStatistic) for kind in needs) and len(list(lm.stacks())) > 1:
            shutil.rmtree(self._loans.scratch, ignore_errors=True)
        self._loans.restore_all(lm.model)
        return self._results()

    def read_plan(self) -> AllocationResult | None:
        """The plan of an earlier run; None if there is none."""
        file = self._file(PLAN)
        if file is None or not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        return AllocationResult(parse_plan(content["plan"], str(file)), content["predicted_loss"], content["record"])

    def write_plan(self, result: AllocationResult) -> None:
        """Keep a plan."""
        content = {
            "plan": plan_to_config(result.plan),
            "predicted_loss": result.predicted_loss,
            "record": dict(result.record),
        }
        if (file := self._file(PLAN)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, flush=True) as partial:
                partial.write_text(json.dumps(content), encoding="utf-8")

    def add(self, group: SolveGroup, result: GroupResult) -> GroupResult:
        """Keep the result of a group, whose part of the model is written later, and return it."""
        if (file := self._file(GROUPS)) is not None:
            part = group.sites[0].block or group.sites[0].name
            line = {"part": part, "group": result.group, "sizes": result.sizes, "tokens": result.tokens}
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        return result

    def _results(self) -> list[GroupResult]:
        file = self._file(GROUPS)
        if file is None or not file.is_file() or self._loans is None:
            return []
        lines = [_read_line(line) for line in file.read_text(encoding="utf-8").splitlines()]
        # A group that was solved again has two lines.
        by_group = {line["group"]: line for line in lines if line and line["part"] in self._loans.restored}
        return [GroupResult(line["group"], line["sizes"], line["tokens"]) for line in by_group.values()]

    def _file(self, name: str) -> Path | None:
        return None if self._loans is None else self._loans.scratch / name


def _read_line(line: str) -> dict[str, Any]:
    """A line as JSON values; empty for a line that a killed run left half written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}
