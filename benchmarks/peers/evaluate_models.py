"""Evaluate one model against another in a process of its own, with this laconic or an earlier one.

    python evaluate_models.py '{"original": …, "model": …, "task": …, "articles": 20, "way": "now", "options": {…}}'

The last line of the output is a JSON object with figures, CPU seconds and the peak of memory. It imports nothing but
laconic, so that `PYTHONPATH` chooses which one.
"""

import json
import resource
import sys
from functools import partial

import torch


def main(job: dict) -> None:
    """Run the job and print its result."""
    torch.set_num_threads(1)
    if job["way"] == "before":
        from laconic.evaluate import evaluate  # noqa: PLC0415 (the module differs between versions)
        from laconic.model import load  # noqa: PLC0415

        small, original = load(job["model"]), load(job["original"])
        found = evaluate(small, [job["task"]], limit=job["articles"], against=original, cost=False)
    else:
        from laconic.evaluate.run import EvaluationSettings, evaluate_in_turn  # noqa: PLC0415
        from laconic.model.loading import load, load_streamed  # noqa: PLC0415

        options = job["options"]
        open_model = load_streamed if options.pop("stream", False) else load
        found = evaluate_in_turn(
            partial(opened, open_model, job["model"]),
            partial(opened, open_model, job["original"]),
            [job["task"]],
            EvaluationSettings(limit=job["articles"], cost=False, resume=True, **options),
            sources=[],
        )
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {"seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024, **found.to_json()}
    print(json.dumps(result))


class opened:  # noqa: N801 (a context manager)
    """Open a model for the time of a block."""

    def __init__(self, load, name: str) -> None:
        self._load, self._name = load, name

    def __enter__(self):
        return self._load(self._name)

    def __exit__(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
