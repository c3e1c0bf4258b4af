"""Measure an original and then a model on the same tasks, so that the two need not be in memory together.

`measure_original` measures the original, and keeps of it what a comparison needs. `measure_model` measures the model
and compares it. In between the original may be closed, unless `Original.lm` is kept: only a comparison in the windows
of a perplexity task needs no blocks of the original.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate.cost import Conditions, Cost, measure_cost
from laconic.evaluate.eval_task import EvalTask, TaskResult
from laconic.evaluate.fidelity import Fidelity, compare_to_reference
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.references import ReferenceCache
from laconic.evaluate.score_cache import ScoreCache
from laconic.evaluate.window_reference import WindowReference, compare_in_windows
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.runtime import EAGER, Service, serve

SEED = 0
"""The random seed of the bootstrap and of masked positions."""
Opener = Callable[[], AbstractContextManager[LanguageModel]]
"""Opens a model for the time of a `with` block."""
Results = dict[str, TaskResult]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The measurements to make.

    Args:
        tasks: the tasks by name.
        corpora: the rows of each task.
        rows: the rows on which two models are compared; None for no comparison.
        in_windows: whether `rows` are those of the first task, which is a perplexity task.
        conditions: the conditions of the cost; their runtime applies to quality as well.
        cost: whether to measure the cost of the model.
        compare_cost: whether to measure the cost of the original.
        resume: whether to use cached results.
        references: the originals of earlier evaluations.
        track: shows progress.
    """

    tasks: Mapping[str, EvalTask]
    corpora: Mapping[str, Corpus]
    rows: Corpus | None
    in_windows: bool
    conditions: Conditions
    cost: bool
    compare_cost: bool
    resume: bool
    references: ReferenceCache
    track: Track

    @property
    def windowed(self) -> tuple[str, Perplexity] | None:
        """Name and task whose windows the models are compared in; None if they are compared in rows."""
        if not self.in_windows or self.conditions.runtime != EAGER:
            return None
        name, task = next(iter(self.tasks.items()))
        return (name, task) if isinstance(task, Perplexity) else None

    def run_tasks(self, lm: LanguageModel, done: Mapping[str, TaskResult], skipped: str | None = None) -> Results:
        """The results of all tasks.

        Args:
            lm: the model in its runtime.
            done: results that exist already, by the names of their tasks.
            skipped: the name of a task to leave out.
        """
        tasks = {name: task for name, task in self.tasks.items() if name != skipped}
        # Only results in torch are cached.
        resume = self.resume and self.conditions.runtime == EAGER
        cache = ScoreCache(lm) if resume and tasks else None
        results: Results = {}
        for name, task in tasks.items():
            corpus = self.corpora[name]
            if name in done:
                results[name] = done[name]
                if cache is not None:
                    cache.write(task, corpus, done[name])
            else:
                run = partial(task.evaluate, lm) if cache is None else partial(cache.evaluate, task)
                results[name] = run(corpus, self.track)
        return results

    def measure_cost(self, lm: LanguageModel, service: Service) -> Cost:
        """The cost of a model in a runtime."""
        batch, length = self.conditions.batch, self.conditions.length
        return measure_cost(lm, None, batch, length, service=service, track=self.track)


@dataclass(frozen=True)
class Original:
    """The measurements of the original, and what a comparison needs of it.

    Args:
        results: the results of its tasks, without the one in whose windows it is compared.
        cost: its cost; None if it was not measured.
        windows: its states in the windows of a task; None if it is compared in rows.
        lm: the original in its runtime; None if it is not needed any more.
    """

    results: Results
    cost: Cost | None
    windows: WindowReference | None
    lm: LanguageModel | None


@dataclass(frozen=True)
class Measured:
    """The measurements of a model, and of the original beside it.

    Args:
        results: the results of the tasks.
        cost: the cost; None if it was not measured.
        original: the results of the original; None without one.
        fidelity: the distance from the original; None if it was not measured.
    """

    results: Results
    cost: Cost | None
    original: Results | None = None
    fidelity: Fidelity | None = None


def measure_original(job: Job, original: LanguageModel) -> Original:
    """Measure the original.

    Args:
        job: the measurements to make.
        original: the original.

    Raises:
        UserError: a task or the cost cannot be measured, or a streamed original cannot be divided into body and head.
    """
    service = serve(original, job.conditions.runtime)
    windows = None
    if job.windowed is not None and job.rows is not None:
        _, task = job.windowed
        windows = job.references.in_windows(service.lm, task, job.rows, resume=job.resume, track=job.track)
        if windows is None and original.loans is not None:
            raise UserError(
                f"The models cannot be compared block by block: '{original.source}' does more with its last hidden "
                "states than its head; compare them in memory."
            )
    skipped = None if windows is None or job.windowed is None else job.windowed[0]
    results = job.run_tasks(service.lm, {}, skipped)
    cost = job.measure_cost(original, service) if job.compare_cost else None
    return Original(results, cost, windows, service.lm if windows is None else None)


def measure_model(job: Job, lm: LanguageModel, original: Original | None, reopen: Opener | None) -> Measured:
    """Measure a model, and compare it with the original.

    Args:
        job: the measurements to make.
        lm: the model.
        original: the measurements of the original; None for no comparison.
        reopen: opens the original again, if the model cannot be compared in its windows.

    Raises:
        UserError: a task or the cost cannot be measured, or the models cannot be compared.
    """
    service = serve(lm, job.conditions.runtime)
    windows = None if original is None else original.windows
    compared = None if windows is None else compare_in_windows(service.lm, windows, SEED, job.track)
    if windows is None or compared is None or job.windowed is None:
        ours, theirs, fidelity = {}, {}, None
    else:
        name, (own, other, fidelity) = job.windowed[0], compared
        ours, theirs = {name: own}, {name: other}
    results = job.run_tasks(service.lm, ours)
    cost = job.measure_cost(lm, service) if job.cost else None
    if original is None:
        return Measured(results, cost)
    with ExitStack() as stack:
        if windows is not None and compared is None and reopen is not None:
            if lm.loans is not None:
                raise UserError(
                    "The models cannot be compared block by block: they read other tokens or windows of another "
                    f"length, or '{lm.source}' does more with its last hidden states than its head; name the model "
                    "that it was made from, or compare them in memory."
                )
            other = serve(stack.enter_context(reopen()), job.conditions.runtime).lm
            theirs = job.run_tasks(other, original.results)
        else:
            other, theirs = original.lm, original.results | theirs
        if fidelity is None and other is not None and job.rows is not None:
            fidelity = compare_to_reference(service.lm, job.references.get(other, job.rows, SEED), job.track)
    return Measured(results, cost, {name: theirs[name] for name in job.tasks}, fidelity)
