"""Export a model to a folder with the exported model, its tokenizer and a model card.

The exported model is loaded again and compared with the model in torch. Without agreement, no folder is written.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from laconic.errors import UserError, unknown
from laconic.evaluate import Evaluation, evaluate
from laconic.evaluate.paired import SIGNIFICANT
from laconic.export.graph_target import GraphTarget
from laconic.export.target import ExportOutcome, Target, Written
from laconic.export.targets import NAMES, TARGETS
from laconic.files import expand_user
from laconic.markdown import plain
from laconic.model import LanguageModel
from laconic.progress import Track, silent
from laconic.runtime.engines import COMPILE, EAGER, ONNX, OPENVINO
from laconic.store.atomic import new_folder
from laconic.store.folder import CARD, save_tokenizers

LARGEST_LOSS = 0.01
"""The largest accepted significant change of a metric, relative to the metric."""


def check_target(name: str, device: str = "cpu", *, cache: bool = True) -> Target:
    """The target of a name, after a check that models can be exported to it on this machine.

    Args:
        name: the value of `--to`.
        device: the type of the device that the model is on.
        cache: whether models that write text get a cache of keys and values.

    Raises:
        UserError: the name is unknown or a runtime of torch, libraries are missing, or the target always has a cache.

    Example:
        >>> check_target("eager")
        Traceback (most recent call last):
        laconic.errors.UserError: A model is exported to onnx, ... 'eager' is torch's, ...
    """
    if name in (EAGER, COMPILE):
        known = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"
        raise UserError(f"A model is exported to {known}; '{name}' is torch's, and runs the model as it is saved.")
    if name not in NAMES:
        raise unknown("target", name, NAMES, "`laconic export` has")
    target = TARGETS[NAMES.index(name)]
    if not cache:
        if not isinstance(target, GraphTarget):
            raise UserError(
                f"The engines that read '{name}' always keep a cache; leave out --no-cache (cache=False), which is for "
                f"{ONNX} and {OPENVINO}."
            )
        target = replace(target, cache=False)
    target.check_installed(device)
    return target


def export(
    lm: LanguageModel,
    to: str | Target,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    track: Track = silent,
) -> ExportOutcome:
    """Export a model to another runtime, and compare it with torch on random tokens, on text and on tasks.

    Args:
        lm: the model; it is not changed.
        to: the target, such as `onnx`: its name, or what `check_target` returns.
        output: the new folder; for a target that needs only one file, it may be that file, named by its suffix.
        tasks: names of tasks on which the exported model must not be worse than the model in torch.
        limit: the largest number of rows of each task; None for all.
        track: reports progress.

    Raises:
        UserError: the folder exists, a library is missing, the model cannot be exported, or the exported model has
            different outputs or is worse on a task. No folder is left then.
    """
    start = time.perf_counter()
    target = check_target(to, lm.device.type) if isinstance(to, str) else to
    target.check_model(lm)
    only = target.single_file if is_single_file(target, output) else None
    with new_folder(output, only) as partial:
        written = target.write(lm, partial, track)
        quality = _evaluate(lm, written, tasks, limit, track) if tasks else None
        if only is None:
            save_tokenizers(lm, partial)
            card = "\n".join((f"# {plain(Path(output).name)}", "", *target.card(lm, written.model))) + "\n"
            (partial / CARD).write_text(card, encoding="utf-8")
    return ExportOutcome(
        output=expand_user(output),
        model=written.model,
        stored_bytes=lm.size()[1],
        quality=quality,
        seconds=time.perf_counter() - start,
    )


def is_single_file(target: Target, output: Path) -> bool:
    """Whether an output is the one file that a target needs, and no folder.

    Example:
        >>> is_single_file(TARGETS[NAMES.index("gguf")], Path("small.gguf"))
        True
    """
    return target.single_file is not None and Path(output).suffix == Path(target.single_file).suffix


def _evaluate(lm: LanguageModel, written: Written, tasks: Sequence[str], limit: int | None, track: Track) -> Evaluation:
    evaluation = evaluate(written.served, tasks, limit=limit, against=lm, cost=False, track=track)
    assert evaluation.original is not None and evaluation.difference is not None
    for task, metrics in evaluation.difference.items():
        for metric, change in metrics.items():
            original = evaluation.original[task][metric].value
            if change.p < SIGNIFICANT and abs(change.value) > LARGEST_LOSS * abs(original):
                found = evaluation.results[task][metric].value
                raise UserError(
                    f"The model for {written.model.runtime} has a {metric} of {found:.4f} on '{task}', where the "
                    f"model in torch has {original:.4f}; nothing was written."
                )
    return evaluation
