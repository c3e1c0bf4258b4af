"""Evaluate a causal language model in the engine that serves it, beside its original in the same engine.

The engine predicts the tokens of the windows that perplexity is measured in (`laconic.evaluate.windows`), so that the
figures are those of its own arithmetic: its kernels, its rounding of inputs and of cached keys and values. Both models
predict the same tokens in turn, and their distributions are compared while both are in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import IGNORED
from laconic.errors import UserError
from laconic.evaluate.comparable import check_names_in
from laconic.evaluate.contamination import calibration_sources, check_disjoint
from laconic.evaluate.engine_cost import EngineCost, measure_engine, prompt_lengths, written_tokens
from laconic.evaluate.eval_task import TaskResult, describe_tokenizer
from laconic.evaluate.fidelity import Fidelity, fidelity_of
from laconic.evaluate.in_turn import SEED
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.run import Evaluation, to_evaluation
from laconic.evaluate.tasks import select_tasks
from laconic.evaluate.windows import Windows, check_window, divide_texts
from laconic.progress import Track
from laconic.runtime.engine import Engine

LOWER_BOUND = (
    "a lower bound: the tokens that are among the {listed} likeliest of both models are compared one by one, and all "
    "others as one"
)


@dataclass(frozen=True)
class EngineModel:
    """A model in the files of an engine.

    Args:
        engine: the engine.
        path: the file or folder that it loads.
        source: the name that the user gave the model.
        tokenizer: the tokenizer that is saved with the model; None if it has none.
    """

    engine: type[Engine]
    path: Path
    source: str
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def longest(self) -> int | None:
        """The largest number of tokens that the model reads; None if it does not say."""
        return self.engine.positions(self.path)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of an evaluation in an engine, by the names of arguments of `laconic.evaluate`.

    Args:
        limit: the largest number of rows of each task; None for all.
        lengths: lengths of prompts in tokens.
        context: the number of tokens in a window of perplexity; None for that of the models, up to 2048.
        track: reports progress.
    """

    limit: int | None
    lengths: Sequence[int]
    context: int | None
    track: Track


def evaluate_in_engine(
    model: EngineModel, original: EngineModel | None, tasks: Sequence[str], settings: EngineSettings
) -> Evaluation:
    """Measure perplexity, cost and the distance from the original in an engine.

    Args:
        model: the model.
        original: the original in the files of the same engine; None for no comparison.
        tasks: names of perplexity tasks. The models are compared in the windows of the first.
        settings: how to measure.

    Raises:
        UserError: a task is unknown or has no text, the context is too long, the models read different tokens, or the
            engine cannot read a model.
    """
    models = [model] if original is None else [model, original]
    selected = select_tasks(tasks, compared=original is not None, context=settings.context)
    sources = [each.source for each in models]
    check_disjoint(selected.sources, calibration_sources(*sources))
    longest = min((each.longest for each in models if each.longest is not None), default=None)
    windowed: dict[str, _Windowed] = {}
    for name, task in selected.tasks.items():
        assert isinstance(task, Perplexity), "other tasks were refused"
        windowed[name] = _Windowed.of(task, task.load_corpus(settings.limit), models, longest)
    lengths, new = prompt_lengths(settings.lengths, longest), written_tokens(longest)
    context = max(max(lengths) + new, *(each.windows.context for each in windowed.values()), 0)
    costs: list[EngineCost] = []
    with ExitStack() as stack:
        loaded: list[Engine] = []
        # The original first: its time and memory are then measured while nothing else is loaded.
        for each in reversed(models):
            engine = stack.enter_context(closing(each.engine(each.path, context)))
            loaded.append(engine)
            costs.append(measure_engine(engine, each.engine.size(each.path), lengths, new, settings.track))
        engine, reference = loaded[-1], loaded[0] if original is not None else None
        if reference is not None:
            _check_vocabularies(engine, reference, models)
        scores = {
            name: score_in_engine(engine, each.windows, settings.track, name, reference)
            for name, each in windowed.items()
        }
    found = {name: each.result(engine, scores[name][:, 1], scores[name][:, 0]) for name, each in windowed.items()}
    theirs = {name: each.result(engine, scores[name][:, 2], scores[name][:, 0]) for name, each in windowed.items()}
    first = next(iter(windowed), None)
    fidelity = None if first is None or reference is None else windowed[first].fidelity(engine, scores[first])
    return to_evaluation(
        {name: each.corpus for name, each in windowed.items()},
        found,
        None if original is None else theirs,
        sources=sources,
        cost=costs[-1],
        original_cost=None if original is None else costs[0],
        fidelity=fidelity,
    )


@dataclass(frozen=True)
class _Windowed:
    """A perplexity task, its rows, and the windows in which models are scored on them."""

    task: Perplexity
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    windows: Windows

    @classmethod
    def of(cls, task: Perplexity, corpus: Corpus, models: Sequence[EngineModel], longest: int | None) -> "_Windowed":
        """Divide the rows, after a check that both models read the same tokens."""
        context, stride = check_window(longest, models[0].source, task.context, task.stride)
        tokenizers = [each.tokenizer for each in models if each.tokenizer is not None]
        if not tokenizers:
            raise UserError(f"There is no tokenizer beside '{models[0].source}'; save its tokenizer in that folder.")
        windows = [divide_texts(tokenizer, corpus, context, stride) for tokenizer in tokenizers]
        if len(tokenizers) == len(models) > 1:
            used = {token for each in windows for row in each.rows for token in row.input_ids}
            names = f"'{models[0].source}'", f"'{models[1].source}'"
            check_names_in((tokenizers[0], tokenizers[1]), names, used)
            if windows[0].inputs != windows[1].inputs:
                raise UserError(
                    f"The models cannot be compared: the tokenizers of {names[0]} and {names[1]} divide the rows of "
                    f"'{corpus.source}' into different tokens; name the model that it was made from."
                )
        return cls(task, corpus, tokenizers[0], task.check_windows(corpus, windows[0]))

    def result(
        self, engine: Engine, nats: Float[Tensor, " documents"], tokens: Float[Tensor, " documents"]
    ) -> TaskResult:
        """The result of a model. It depends on the engine in place of a dtype."""
        found = self.task.result(self.tokenizer, self.corpus, self.windows, nats, tokens)
        settings = {name: value for name, value in found.settings.items() if name != "dtype"}
        return replace(found, settings={**settings, "runtime": engine.name, "library": engine.version})

    def fidelity(self, engine: Engine, scores: Float[Tensor, "documents 5"]) -> Fidelity:
        """The distance of the model from the original."""
        scored = scores[scores[:, 0] > 0]
        tokens, _, _, kl, same = scored.unbind(1)
        table = torch.column_stack((kl, same, torch.full_like(kl, torch.nan), tokens)).numpy()
        tokenizer = describe_tokenizer(self.tokenizer)
        found = fidelity_of(table, self.corpus, seed=SEED, context=self.windows.context, tokenizer=tokenizer)
        note = None if engine.listed is None else LOWER_BOUND.format(listed=engine.listed)
        return replace(found, stride=self.windows.stride, note=note)


@torch.inference_mode()
def score_in_engine(
    engine: Engine, windows: Windows, track: Track, label: str, reference: Engine | None = None
) -> Float[Tensor, "documents 5"]:
    """Score every token of the windows that has a label.

    Args:
        engine: the model.
        windows: the windows of some documents.
        track: shows progress.
        label: a description of the work, for progress.
        reference: the original in the same engine; None for no comparison.

    Returns:
        For each document the sums over its tokens: their number, −log p by the model and by the original,
        KL(original ‖ model), and the number of tokens for which both have the same likeliest token. Without an original
        the last three are 0.

    Raises:
        UserError: the engine cannot run a window.
    """
    table = torch.zeros(windows.count, 5, dtype=torch.float64)
    lengths = [float(len(row.input_ids)) for row in windows.rows]
    for row, document in track(list(zip(windows.rows, windows.documents, strict=True)), label, lengths):
        assert isinstance(row.labels, list), "every token of a window has a label"
        # Without tokens before it, the first token cannot be predicted.
        start = max(1, next((place for place, token in enumerate(row.labels) if token != IGNORED), len(row.labels)))
        for columns in _columns(engine, reference, row.input_ids, start):
            table[document] += columns.sum(0)
    return table


def _columns(
    engine: Engine, reference: Engine | None, tokens: Sequence[int], start: int
) -> Iterator[Float[Tensor, "n 5"]]:
    """The columns of `score_in_engine` for some of the predicted tokens at a time."""
    if start >= len(tokens):
        return
    targets = torch.tensor(tokens)
    references = repeat(None) if reference is None else reference.predict(tokens, start)
    # The engine ends first: `repeat` does not end.
    for found, theirs in zip(engine.predict(tokens, start), references, strict=False):
        part, start = targets[start : start + len(found)], start + len(found)
        nats = found.nats(part)
        columns = [torch.ones_like(nats), nats]
        if theirs is None:
            columns += [torch.zeros_like(nats)] * 3
        else:
            columns += [theirs.nats(part), found.kl_from(theirs), (found.best() == theirs.best()).double()]
        yield torch.stack(columns, dim=1)


def _check_vocabularies(engine: Engine, reference: Engine, models: Sequence[EngineModel]) -> None:
    """Raise UserError if two models predict different numbers of tokens."""
    if engine.vocabulary != reference.vocabulary:
        raise UserError(
            f"The models cannot be compared: '{models[0].source}' has a vocabulary of {engine.vocabulary} tokens, and "
            f"'{models[1].source}' one of {reference.vocabulary}; name the model that it was made from."
        )
