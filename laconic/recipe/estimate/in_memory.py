"""The memory of a step on a model that is in memory whole, from shapes.

The constants were fitted to measured peaks (`python -m benchmarks large_models`).
"""

from collections.abc import Iterable, Sequence
from math import prod

import torch

from laconic.cache import cache_limit
from laconic.calibrate.statistics import GradientStatistic, InputStatistic
from laconic.compress import Compress, Step
from laconic.model import Batch, LanguageModel, ModelTask, Site
from laconic.model.loans_origins import tensors_below
from laconic.model.tokens import vocabulary_size

META = torch.device("meta")
FLOAT = 4
"""Bytes of a number in float32, in which models compute."""
DOUBLE = 8
GRAPH = 1.75
"""Tensors that autograd keeps for each input and output of a layer: some are shared, and norms and activations add."""
LOGITS, LOGITS_WITH_GRAPH = 2, 4
"""Tensors of the size of the logits that exist at once."""
SOLVER = 16
"""Float32 copies of the largest matrix that its solver makes."""
MOMENTS = 3
"""Float64 copies of the largest covariance that its solver makes."""
TRAINED = 4
"""Tensors for each parameter while a step trains: weights, gradients, and two moments of the optimizer."""


def weight_memory(lm: LanguageModel) -> int:
    """Bytes of all tensors of a model that is loaded in float32, each once."""
    tensors = {id(tensor): tensor for _, _, tensor in tensors_below(lm.model)}
    return sum(
        tensor.numel() * (FLOAT if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors.values()
    )


def step_memory(lm: LanguageModel, step: Step, batches: Sequence[Batch], most_logits: int | None = None) -> int:
    """Bytes that a step needs with the model in memory, beyond the memory of the program itself.

    Args:
        lm: the model without weights, before the step.
        step: the step.
        batches: the calibration batches.
        most_logits: the largest number of logits that are in memory at a time; None for those of a batch.
    """
    weights = weight_memory(lm) * (2 if step.needs_original else 1)
    tokens = max((batch["input_ids"].numel() for batch in batches), default=0)
    logits = tokens * _words(lm) if most_logits is None else min(tokens * _words(lm), most_logits)
    if not isinstance(step, Compress):
        if not step.needs_data:
            return weights
        return (TRAINED if step.prepares or not step.families else 1) * weights + _graph(lm, tokens, logits)
    sites = step.sites(lm)
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in step.needs)
    statistics = _statistics(step, sites)
    running = _graph(lm, tokens, logits) if with_gradients else _activations(sites, tokens, logits)
    solutions = sum(_solution(site) for site in sites) if any(method.caches_solution for method in step.methods) else 0
    # The cache writes a copy of the statistics, or of the solutions if the method can make all sizes from them.
    copied = solutions or (0 if step.is_sequential else statistics)
    copied = copied if step.needs and copied <= cache_limit() else 0
    tried = 0 if step.allocate == "uniform" else weights
    solving = solutions + copied + tried + _workspace(sites, with_gradients)
    return weights + statistics + max(running if step.needs else 0, solving)


def _statistics(step: Compress, sites: Iterable[Site]) -> int:
    """Bytes of the statistics of all layers that are in memory together."""
    by_block: dict[str, int] = {}
    seen: set[str] = set()
    for site in sites:
        rows, columns = site.shape
        own = [kind.empty((rows, columns), META) for kind in step.needs if issubclass(kind, GradientStatistic)]
        if site.input not in seen:
            own += [
                kind.empty(columns, site.is_lookup, META) for kind in step.needs if issubclass(kind, InputStatistic)
            ]
        seen.add(site.input)
        block = site.block or site.name
        by_block[block] = by_block.get(block, 0) + sum(statistic.total.nbytes for statistic in own)
    return max(by_block.values(), default=0) if step.is_sequential else sum(by_block.values())


def _solution(site: Site) -> int:
    """Bytes of a decomposition of full rank."""
    return FLOAT * sum(site.shape) * min(site.shape)


def _workspace(sites: Sequence[Site], with_gradients: bool) -> int:
    """Bytes that the largest matrix takes while it is solved."""
    largest = max((prod(site.shape) for site in sites), default=0)
    widths = (max(site.shape) if with_gradients else site.shape[1] for site in sites if not site.is_lookup)
    return SOLVER * FLOAT * largest + MOMENTS * DOUBLE * max(widths, default=0) ** 2


def _activations(sites: Sequence[Site], tokens: int, logits: int) -> int:
    """Bytes of a forward pass over a batch: a few tensors of the widest layer, and the logits."""
    widest = max((max(site.shape) for site in sites if not site.is_lookup), default=0)
    return FLOAT * max(3 * widest * tokens, LOGITS * logits)


def _graph(lm: LanguageModel, tokens: int, logits: int) -> int:
    """Bytes of the graph of a whole model on a batch, and of its logits."""
    sites = [site for site in lm.sites(("*",)) if site.block is not None]
    outputs = sum(site.shape[0] for site in sites)
    inputs = sum({site.input: site.shape[1] for site in sites}.values())
    return int(FLOAT * (GRAPH * (outputs + inputs) * tokens + LOGITS_WITH_GRAPH * logits))


def _words(lm: LanguageModel) -> int:
    """The number of logits of a token; 0 for a model that predicts no words."""
    predicts_words = lm.task in (ModelTask.CAUSAL, ModelTask.MASKED, ModelTask.SEQ2SEQ)
    return vocabulary_size(lm.model) if predicts_words else 0
