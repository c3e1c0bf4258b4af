"""Export, whole or not at all: write for the other runtime, load what was written, compare, and only then keep it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laconic.errors import UserError, unknown
from laconic.evaluate import Evaluation, evaluate
from laconic.evaluate.paired import SIGNIFICANT
from laconic.export.agreement import check_agreement
from laconic.export.card import Written, card
from laconic.model import LanguageModel
from laconic.paths import expanded
from laconic.progress import Track, silent
from laconic.runtime import Ready, check_runtime, serve
from laconic.runtime.extras import COMPILE, EAGER, RUNTIMES
from laconic.runtime.files import weights_bytes, write
from laconic.runtime.graph import graph_of
from laconic.runtime.programs import program
from laconic.store.atomic import new_folder
from laconic.store.folder import CARD, save_tokenizers

LOST = 0.01
"""The change of a metric, as part of it, that is too much where it is no chance."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an export made.

    stored_bytes: of the weights as laconic stores them.
    quality:      the tasks that were asked for, judged through the runtime and against torch.
    """

    output: Path
    written: Written
    stored_bytes: int
    quality: Evaluation | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `laconic export --json` prints them."""
        return {
            "output": str(self.output),
            **asdict(self.written),
            "stored_bytes": self.stored_bytes,
            "quality": None if self.quality is None else self.quality.to_json(),
            "seconds": round(self.seconds, 3),
        }


def check_target(runtime: str, device: str = "cpu") -> None:
    """Raise UserError unless models can be exported to `runtime` here."""
    known = [name for name in RUNTIMES if name not in (EAGER, COMPILE)]
    if runtime in (EAGER, COMPILE):
        raise UserError(
            f"A model is exported to {' or '.join(known)}; '{runtime}' is torch's, and runs the model as it is saved."
        )
    if runtime not in known:
        raise unknown("target", runtime, known, "`laconic export` has")
    check_runtime(runtime, device)


def export(
    lm: LanguageModel,
    runtime: str,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    track: Track = silent,
) -> Outcome:
    """Write `lm` for `runtime` (`onnx`, `openvino`) to the new folder `output`, with its tokenizer and a card.

    What was written is loaded and compared with `lm`: on random tokens, on text, and on the first `limit` rows of each
    of `tasks`.

    Raises:
        UserError: the folder exists, the libraries are missing, the model cannot be exported, or what was exported
            computes something else or does worse on a task; then there is no folder.
    """
    start = time.perf_counter()
    check_target(runtime, lm.device.type)
    with new_folder(output) as partial:
        graph = graph_of(lm, runtime)
        file = write(lm, graph, runtime, partial)
        found = check_agreement(lm, program(runtime, file, exact=True), graph.signature, runtime, track)
        ready = Ready(program(runtime, file), graph.signature, weights_bytes(partial), graph.layers)
        quality = _quality(lm, runtime, ready, tasks, limit, track) if tasks else None
        written = Written(
            file=file.name,
            runtime=runtime,
            library=ready.program.version,
            inputs=graph.signature.inputs,
            outputs=graph.signature.outputs,
            bytes=ready.bytes,
            layers=ready.layers,
            agreement=found,
        )
        save_tokenizers(lm, partial)
        (partial / CARD).write_text(card(lm, Path(output).name, written), encoding="utf-8")
    return Outcome(
        output=expanded(output),
        written=written,
        stored_bytes=lm.size()[1],
        quality=quality,
        seconds=time.perf_counter() - start,
    )


def _quality(
    lm: LanguageModel, runtime: str, ready: Ready, tasks: Sequence[str], limit: int | None, track: Track
) -> Evaluation:
    served = serve(lm, runtime, ready).lm
    judged = evaluate(served, tasks, limit=limit, against=lm, cost=False, track=track)
    assert judged.original is not None and judged.difference is not None
    for task, metrics in judged.difference.items():
        for metric, change in metrics.items():
            before = judged.original[task][metric].value
            if change.p < SIGNIFICANT and abs(change.value) > LOST * abs(before):
                raise UserError(
                    f"The model for {runtime} has a {metric} of {judged.results[task][metric].value:.4f} on '{task}', "
                    f"where the model in torch has {before:.4f}; nothing was written."
                )
    return judged
