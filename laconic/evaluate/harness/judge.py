"""A task of the harness as one of laconic's: the same scores for each row, with intervals and paired comparisons."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from laconic.calibrate.batching import positions, tokenizer_of
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
from laconic.evaluate.eval_task import EvalTask, Judged, rows_per_batch, tokenizer_name
from laconic.evaluate.harness.names import find_task
from laconic.evaluate.harness.scores import metrics_of, table_of
from laconic.evaluate.intervals import Metric
from laconic.model import LanguageModel, Task
from laconic.progress import Track

if TYPE_CHECKING:
    from laconic.evaluate.harness.build import Built

BATCH = 16
CONTEXT = 2048
"""Of a model that takes any length: what the harness assumes."""
RESAMPLES = 1000
"""Of the harness's own standard errors, where they have no formula."""


@dataclass(frozen=True)
class Prompts(Corpus):
    """The first request of each row of a task; `digest` is of all requests and rows, with their right answers."""

    digest: str = ""


@dataclass(frozen=True)
class Harness(EvalTask):
    """The task `task` of the harness, without examples before the question unless the task itself says so."""

    kinds = (Task.CAUSAL, Task.SEQ2SEQ)

    task: str

    @property
    def name(self) -> str:
        return f"harness/{self.task}"

    @property
    def source(self) -> str:
        return self.name

    @property
    def generates(self) -> bool:
        from laconic.evaluate.harness.build import writes  # noqa: PLC0415 (needs the extra)

        return writes(self.task)

    def check(self) -> None:
        find_task(self.task)
        from laconic.evaluate.harness.build import check  # noqa: PLC0415 (needs the extra)

        check(self.task)

    def refuse(self, lm: LanguageModel) -> None:
        """Raise UserError unless a model of that structure can be judged, and what tokenizer it has.

        The harness puts a token of the beginning, or of the end, before what it asks, and stops at one of the end.
        """
        super().refuse(lm)
        if lm.tokenizer is None or lm.tokenizer.eos_token_id is not None:
            return
        if lm.tokenizer.bos_token_id is None or self.generates:
            raise UserError(
                f"The tokenizer of '{lm.source}' has no token for the end of a text (eos_token), which '{self.name}' "
                "needs; use the tokenizer that the model was trained with."
            )

    def check_rows(self, lm: LanguageModel, read: Callable[[], Corpus]) -> None:
        """Check local files; the harness reads what it fetches itself, when it builds its requests."""
        from laconic.evaluate.harness.build import check_rows  # noqa: PLC0415 (needs the extra)

        check_rows(self.task)

    def corpus(self, limit: int | None) -> Prompts:
        """The first request of each of the first `limit` rows: a prompt, and an answer that is scored after it."""
        built = self._built()
        from laconic.evaluate.harness.isolation import isolated  # noqa: PLC0415 (needs the extra)

        with isolated():
            built.task.build_all_requests(limit=limit)
        rows: dict[int | None, Example] = {}
        hashed = hashlib.blake2b(version("lm_eval").encode(), digest_size=16)
        for request in built.task.instances:
            prompt, *answer = request.args
            target = answer[0].strip() if answer and isinstance(answer[0], str) else None
            rows.setdefault(request.doc_id, Example(prompt, target=target))
            hashed.update(json.dumps([request.args, request.doc], default=str).encode())
        hashed.update(json.dumps(built.task.dump_config(), default=str).encode())
        return Prompts(built.source, built.split, tuple(rows.values()), digest=hashed.hexdigest())

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has the harness's scores of each row: of `acc`, 1 where the right answer is the likeliest."""
        self.refuse(lm)
        if lm.target_tokenizer is not None:
            raise UserError(
                f"'{self.name}' reads and scores with one tokenizer; '{lm.source}' has another one for its targets."
            )
        built = self._built()
        from lm_eval.evaluator import evaluate  # noqa: PLC0415 (needs the extra)

        from laconic.evaluate.harness.isolation import SEEDS, isolated  # noqa: PLC0415 (needs the extra)
        from laconic.evaluate.harness.scorer import Scorer  # noqa: PLC0415 (needs the extra)

        rows = len(corpus.examples)
        with evaluating(lm), isolated():
            batch = rows_per_batch(lm, positions(lm) or CONTEXT, BATCH)
            scorer = Scorer(lm, batch, track, self.name)
            said = evaluate(scorer, {"tasks": {self.task: built.task}}, limit=rows, bootstrap_iters=RESAMPLES)
        assert said is not None, "the harness returns its results to the first process, and here is one"
        # Its type says of every section that it may be absent.
        found: Mapping[str, Any] = dict(said)
        table, widths = table_of(found["samples"][self.task])
        settings = {
            "split": built.split,
            "few_shot": found["n-shot"][self.task],
            "context": scorer.max_length,
            "requests": scorer.asked,
            "cut_on_the_left": scorer.cut,
            "answers_cut": scorer.answers_cut,
            "batch": batch,
            "special_tokens": _special_tokens(lm),
            "tokenizer": tokenizer_name(lm),
            "seeds": SEEDS,
            "columns": widths,
            "harness": _own_format(found, self.task),
        }
        return Judged(table, self._metrics(built, widths), settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return self._metrics(self._built(), settings["columns"])

    def _metrics(self, built: "Built", widths: Mapping[str, int]) -> Mapping[str, Metric]:
        if not widths:
            raise UserError(f"'{self.name}' scores all rows together, which laconic has no interval for; take another.")
        # Its abstract method has no type.
        aggregations: Any = built.task.aggregation()
        return metrics_of(widths, aggregations)

    def _built(self) -> "Built":
        find_task(self.task)
        from laconic.evaluate.harness.build import build  # noqa: PLC0415 (needs the extra)

        return build(self.task)


def _own_format(found: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The results of `task` as `lm_eval --output_path` writes them, without single rows; plain values only."""
    sections = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    own = {section: {task: found[section][task]} for section in sections if task in found.get(section, {})}
    # Where local files stand in, this is laconic's code.
    own["configs"] = {task: {name: of for name, of in own["configs"][task].items() if name != "custom_dataset"}}
    return json.loads(json.dumps({**own, "lm_eval_version": version("lm_eval")}, default=str))


def _special_tokens(lm: LanguageModel) -> list[str]:
    """What the tokenizer puts around a text; the harness leaves that to it."""
    tokenizer = tokenizer_of(lm)
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])]
