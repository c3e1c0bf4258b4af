"""Use the harness as a library: load its tasks with their rows, and give it a model in memory.

Rows come from local files or from the data set in the YAML file of a task. `isolate_harness` suppresses the output of
the harness, and sets the random seeds that its own program sets. `HarnessModel` derives from HFLM, the model class of
the harness; it reports progress and counts truncated requests.
"""

import copy
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api import task
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task as HarnessTask
from lm_eval.evaluator import evaluate
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from torch import Tensor

from laconic.calibrate.row import tokenizer_of
from laconic.calibrate.sources.hub import find_split
from laconic.errors import UserError, reason_of
from laconic.evaluate.harness.local import SPLIT, LocalData, find_local_data, find_task_file, local_files
from laconic.model import LanguageModel, ModelTask
from laconic.model.predictions import report_run_errors
from laconic.progress import Track

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "few_shot": 1234}
"""The default seeds of the harness."""
RESAMPLES = 1000
"""The number of bootstrap resamples for the harness's own standard errors, for metrics without a formula."""


@contextmanager
def isolate_harness() -> Iterator[None]:
    """A context in which the harness prints and logs nothing, and random generators have its default seeds."""
    logger, python, numpy = logging.getLogger("lm_eval"), random.getstate(), np.random.get_state()
    # The harness has no option to disable its progress bar. tqdm is a class there; a function can replace it.
    namespace: Any = task
    level, tqdm = logger.level, namespace.tqdm
    logger.setLevel(logging.CRITICAL)
    namespace.tqdm = lambda items, **_: items
    try:
        # The bootstrap of the harness prints to stdout.
        with redirect_stdout(io.StringIO()), torch.random.fork_rng():
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])
            torch.manual_seed(SEEDS["torch"])
            yield
    finally:
        logger.setLevel(level)
        namespace.tqdm = tqdm
        random.setstate(python)
        np.random.set_state(numpy)


@dataclass(frozen=True)
class LoadedTask:
    """A task of the harness with its rows.

    Args:
        task: the task object of the harness.
        source: the data source of the rows.
        split: the split of the rows.
    """

    task: HarnessTask
    source: str
    split: str


def load_task(name: str) -> LoadedTask:
    """Load a task with its rows. Few-shot examples, if its YAML asks for them, are drawn with the harness's seed.

    Raises:
        UserError: there is no such task, its rows cannot be loaded, or a package that it needs is not installed.
    """
    manager, config = _load_definition(name)
    local = _find_local(config)
    with isolate_harness(), _explain_errors(name):
        definition = name if local is None else _with_local_rows(name, config, local)
        task = manager.load([definition])["tasks"][name]
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEEDS["few_shot"])
    source = local.source if local else ":".join(filter(None, _dataset(config))) or f"harness/{name}"
    return LoadedTask(task, source, SPLIT if local else _split(config))


def run_task(task: HarnessTask, name: str, model: "HarnessModel", rows: int) -> dict[str, Any]:
    """The results of the harness for a model, with the scores of each row.

    Args:
        task: the task object of the harness.
        name: the name of the task.
        model: the model to score.
        rows: the number of rows, from the beginning.
    """
    results = evaluate(model, {"tasks": {name: task}}, limit=rows, bootstrap_iters=RESAMPLES)
    assert results is not None, "the harness returns its results in the first process, and there is only one"
    # The type of the result declares all sections as optional.
    return dict(results)


def check_task(name: str) -> None:
    """Check that a task and its data set exist, without reading rows.

    Raises:
        UserError: as in `load_task`, for a missing task or data set.
    """
    _, config = _load_definition(name)
    dataset, configuration = _dataset(config)
    # A data set that is made by code, or from files in the YAML, is checked only when it is built.
    if _find_local(config) or dataset.count("/") != 1 or {"custom_dataset", "dataset_kwargs", "class"} & config.keys():
        return
    try:
        find_split(dataset, configuration, (_split(config),))
    except UserError as error:
        files = local_files(dataset, configuration)
        raise (
            UserError(f"There is no {files}, and the data set cannot be read from the hub: {error}") if files else error
        ) from error


def check_rows(name: str) -> None:
    """Raise UserError if the rows of a task come from a local file that cannot be read or has no rows."""
    _, config = _load_definition(name)
    if local := _find_local(config):
        local.rows()


def generates_text(name: str) -> bool:
    """Whether the model generates its answers. This is the harness's default for a task without an `output_type`."""
    _, config = _load_definition(name)
    return config.get("output_type", "generate_until") == "generate_until"


def _load_definition(name: str) -> tuple[TaskManager, Mapping[str, Any]]:
    """The task manager of the harness, and the configuration of the task in which functions are names."""
    file = find_task_file(name)
    with isolate_harness(), _explain_errors(name):
        manager = TaskManager(include_defaults=False, include_path=str(file.parent))
        config = manager.task_index[name].cfg or {}
    if config.get("unsafe_code"):
        raise UserError(f"'harness/{name}' runs code that the model writes, which laconic does not; take another task.")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(
            f"'harness/{name}' uses images or audio, and laconic's models read only text; take another task."
        )
    return manager, config


def _find_local(config: Mapping[str, Any]) -> LocalData | None:
    """Local files with the rows of a task; None if the task needs another split or few-shot examples."""
    if _split(config) != SPLIT or config.get("num_fewshot") or "class" in config:
        return None
    return find_local_data(*_dataset(config))


def _with_local_rows(name: str, config: Mapping[str, Any], local: LocalData) -> dict[str, Any]:
    """The configuration of a task with its rows replaced. The harness allows changes only to tasks inside a group."""

    def rows(**_: Any) -> DatasetDict:
        return DatasetDict({SPLIT: Dataset.from_list(local.rows())})

    # Remove the other splits: the harness would read them for few-shot examples, although there are none.
    absent = {split: None for split in ("training_split", "fewshot_split") if config.get(split) not in (None, SPLIT)}
    return {"group": f"{name} on local files", "task": [{"task": name, "custom_dataset": rows, **absent}]}


def _dataset(config: Mapping[str, Any]) -> tuple[str, str | None]:
    return config.get("dataset_path") or "", config.get("dataset_name")


def _split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or SPLIT


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Convert errors of the harness, its files or the hub to UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"'harness/{name}' needs another package: {reason_of(error)}; install it.") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"The rows of 'harness/{name}' cannot be loaded: {reason_of(error)}; check the network, or take another "
            "task."
        ) from error


# The decorator that registers the class removes its type.
HFLM: Any = huggingface.HFLM

BATCHES_PER_PART = 8
"""The number of batches after which progress is reported."""


class HarnessModel(HFLM):
    """HFLM for a model in memory.

    Args:
        lm: the model.
        batch_size: the number of requests in a batch.
        track: reports progress.
        task_name: for progress and errors.

    Attributes:
        n_requests: the number of requests.
        n_truncated: the number of requests longer than the context; their prompts are truncated on the left.
        n_answers_truncated: the number of requests whose answer alone is longer than the context. The harness itself
            fails for these.
    """

    def __init__(self, lm: LanguageModel, batch_size: int, track: Track, task_name: str) -> None:
        # Copied, because the harness adds a pad token to a tokenizer without one.
        tokenizer = copy.deepcopy(tokenizer_of(lm))
        backend = "seq2seq" if lm.task is ModelTask.SEQ2SEQ else "causal"
        super().__init__(pretrained=lm.model, tokenizer=tokenizer, backend=backend, batch_size=batch_size)
        self._lm, self._track, self._task_name = lm, track, task_name
        self.n_requests = 0
        self.n_truncated = 0
        self.n_answers_truncated = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._in_parts(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._in_parts(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        # Tasks use several names for the option of the largest number of tokens in an answer.
        normalize: Any = normalize_gen_kwargs
        longest = max(normalize(dict(request.args[-1]), self.max_gen_toks)["max_gen_toks"] for request in requests)
        if self.backend == "causal" and longest >= self.max_length:
            raise UserError(
                f"'{self._task_name}' writes up to {longest} tokens after a prompt, and the model has a context of "
                f"{self.max_length}; take another task."
            )
        return self._in_parts(super().generate_until, requests)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with report_run_errors(self._lm, inps):
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, **options: Any) -> Tensor:
        with report_run_errors(self._lm, context, writes=True):
            return super()._model_generate(context, **options)

    def _in_parts(self, ask: Callable[..., list[Any]], requests: Sequence[Instance]) -> list[Any]:
        """Call `ask` on parts of the requests, and return all answers in the order of the requests.

        As in HFLM, long requests come first, and requests with the same prompt are kept together.
        """
        self.n_requests += len(requests)
        prompts = [str(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: (-len(prompts[index]), prompts[index]))
        size = BATCHES_PER_PART * self.batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        answers: dict[int, Any] = {}
        for part in self._track(parts, self._task_name):
            answers |= zip(part, ask([requests[index] for index in part], disable_tqdm=True), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        longest = self.max_length
        self.n_answers_truncated += sum(len(answer) > longest for _, _, answer in requests)
        requests = [(texts, prompt, answer[-longest:]) for texts, prompt, answer in requests]
        for _, prompt, answer in requests:
            # The last token of an answer is not an input: it is only predicted.
            self.n_truncated += len(prompt) + (len(answer) - 1 if self.backend == "causal" else 0) > longest
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:
        if left_truncate_len is not None:
            self.n_truncated += sum(len(self.tok_encode(prompt)) > left_truncate_len for prompt in strings)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
