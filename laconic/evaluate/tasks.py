"""Tasks by the names that `--tasks` takes: `glue/TASK`, `lama/CORPUS`, `blimp/PHENOMENON`, `harness/NAME` for those of
the lm-evaluation-harness, and those of a source: `perplexity:SOURCE`, `seq2seq:SOURCE`, `fidelity:SOURCE`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from laconic.calibrate.batching import check_readable
from laconic.calibrate.corpus import Corpus, check_source, read
from laconic.calibrate.sources import TASKS, glue_task
from laconic.errors import UserError, unknown
from laconic.evaluate.blimp import blimp_task
from laconic.evaluate.contamination import check_apart
from laconic.evaluate.eval_task import EvalTask
from laconic.evaluate.glue import Glue
from laconic.evaluate.harness import Harness
from laconic.evaluate.lama import LAMA_NAMES, lama_task
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.seq2seq import Seq2Seq
from laconic.model import LanguageModel
from laconic.runtime import EAGER, ONNX, OPENVINO

ON_A_SOURCE: dict[str, type[Perplexity] | type[Seq2Seq]] = {"perplexity": Perplexity, "seq2seq": Seq2Seq}
OF_FILES: dict[str, Callable[[str], EvalTask]] = {"lama": lama_task, "blimp": blimp_task}
"""Tasks of their own files in LACONIC_DATA, by the first part of their names."""
FIDELITY = "fidelity"
"""Judges no model alone: it names the rows on which a model of any kind is compared with its original."""
KINDS = (*ON_A_SOURCE, FIDELITY)
HARNESS = "harness/"
SPLIT = "dev"
Rows = Callable[[EvalTask], Corpus]


def rows_of(judge: EvalTask, limit: int | None = None) -> Corpus:
    """The rows of a task, or the first `limit` of them."""
    return judge.corpus(limit)


@dataclass(frozen=True)
class Wanted:
    """What a list of task names asks for; `fidelity`: the source of the rows that two models are compared on."""

    judges: dict[str, EvalTask]
    fidelity: str | None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """The name of each task with the source of its rows."""
        named = [(name, judge.source) for name, judge in self.judges.items()]
        return named if self.fidelity is None else [*named, (f"{FIDELITY}:{self.fidelity}", self.fidelity)]

    def rows_to_compare(self, judged: dict[str, Corpus], limit: int | None) -> Corpus | None:
        """The rows for fidelity: those named for it, else those of the first task; None where there is no task."""
        if self.fidelity is not None:
            return read(self.fidelity, SPLIT).first(limit)
        return next((self.judges[name].texts(corpus) for name, corpus in judged.items()), None)


def wanted(names: Sequence[str], compared: bool) -> Wanted:
    """The tasks of these names, for a model that is `compared` with an original or stands alone.

    Raises:
        UserError: there is no such task, it lacks its source, or `fidelity` lacks an original or is named twice.
    """
    sources = {name: _source(name) for name in names if _kind(name) == FIDELITY}
    if sources and not compared:
        raise UserError(
            f"The task '{next(iter(sources))}' needs an original to compare with; name it: laconic evaluate MODEL "
            "--against ORIGINAL."
        )
    if len(sources) > 1:
        raise UserError(f"The models are compared on one source; name one of {', '.join(sources)}.")
    judges = {name: _judge(name) for name in names if name not in sources}
    return Wanted(judges, next(iter(sources.values()), None))


def without_original(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks that judge a model alone."""
    return tuple(name for name in names if _kind(name) != FIDELITY)


def check_task(name: str, lm: LanguageModel | None = None) -> None:
    """`check_tasks` of one task of a model that is not compared with another."""
    check_tasks([name], lm, compared=False)


def check_tasks(
    names: Sequence[str],
    lm: LanguageModel | None,
    *,
    compared: bool,
    calibration: Sequence[str] = (),
    runtime: str = EAGER,
    rows: Rows = rows_of,
) -> None:
    """Raise UserError as `wanted`, and for a source that does not exist; no weights are read.

    `lm` is the model without weights, where there is one already: one of the wrong kind is refused too, and so are rows
    that it cannot be judged on, which `rows` reads. `calibration` names the sources that it
    was made with: a task that would judge on the same file is refused. A task that lets the model write is refused
    where `runtime` cannot.
    """
    asked = wanted(names, compared)
    check_apart(asked.sources, calibration)
    if asked.fidelity is not None:
        check_source(asked.fidelity, SPLIT)
    for judge in asked.judges.values():
        judge.check()
        if runtime in (ONNX, OPENVINO) and judge.generates:
            raise UserError(
                f"The task '{judge.name}' lets the model write, which it cannot in the runtime '{runtime}'; judge it "
                "in the runtime eager."
            )
        if lm is not None:
            judge.refuse(lm)
    if lm is None:
        return
    for judge in asked.judges.values():
        judge.check_rows(lm, lambda judge=judge: rows(judge))
    if asked.fidelity is not None:
        corpus = read(asked.fidelity, SPLIT)
        if lm.tokenizer is not None:
            check_readable(lm, corpus)


def _judge(name: str) -> EvalTask:
    if name.lower().startswith("glue/"):
        return Glue(glue_task(name[len("glue/") :].rstrip("/")))
    if name.startswith(HARNESS):
        return Harness(name.removeprefix(HARNESS))
    if _kind(name) in ON_A_SOURCE:
        return ON_A_SOURCE[_kind(name)](_source(name))
    of_files = re.split("[/:]", name.lower(), maxsplit=1)[0]
    if of_files in OF_FILES:
        return OF_FILES[of_files](name)
    known = [*(f"glue/{task.name}" for task in TASKS), *LAMA_NAMES, "blimp", "blimp/PHENOMENON", f"{HARNESS}NAME"]
    raise unknown("task", name, [*known, *(f"{kind}:SOURCE" for kind in KINDS)])


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _source(name: str) -> str:
    kind, _, source = name.partition(":")
    if not source:
        raise UserError(f"The task '{kind}' lacks its text; name it as {kind}:SOURCE, like {kind}:builtin:pydoc.")
    return source
