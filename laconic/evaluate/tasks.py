"""Quality tasks by name: `glue/TASK`, `perplexity:SOURCE`, `seq2seq:SOURCE`."""

from laconic.calibrate.sources import TASKS, glue_task
from laconic.errors import UserError, unknown
from laconic.evaluate.glue import Glue
from laconic.evaluate.judging import Judge
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.seq2seq import Seq2Seq

ON_A_SOURCE: dict[str, type[Perplexity] | type[Seq2Seq]] = {"perplexity": Perplexity, "seq2seq": Seq2Seq}


def task_named(name: str) -> Judge:
    """The task of this name.

    Raises:
        UserError: there is none, or it lacks its source.
    """
    if name.lower().startswith("glue/"):
        return Glue(glue_task(name[len("glue/") :].rstrip("/")))
    kind, separator, source = name.partition(":")
    if kind in ON_A_SOURCE and separator and source:
        return ON_A_SOURCE[kind](source)
    if kind in ON_A_SOURCE:
        raise UserError(f"The task '{kind}' lacks its text; name it as {kind}:SOURCE, like {kind}:builtin:pydoc.")
    raise unknown("task", name, [*(f"glue/{task.name}" for task in TASKS), *(f"{kind}:SOURCE" for kind in ON_A_SOURCE)])


def check_task(name: str) -> None:
    """Raise UserError for a task, or a source of one, that does not exist; no model and no row is read."""
    task_named(name).check()
