"""Describe an inspection in sentences: weights far from zero by layer, ranks, outliers, similarity of blocks and heads.

The sentences are the same for every model; only the numbers differ.
"""

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean
from typing import Any

from scipy.stats import norm, spearmanr

from laconic.numerics.inspection import Magnitudes
from laconic.report.inspection.activity import Activity, BlockSimilarity
from laconic.report.inspection.weights import BIAS, IN_BLOCKS, ModelWeights, combine

GAUSSIAN_TOP_TENTH = exp(-(norm.ppf(0.95) ** 2) / 2)
"""The share of the L1 norm in the largest tenth of Gaussian weights, for comparison."""
TREND = 0.7
"""The least absolute rank correlation with depth that counts as a trend."""
MIN_LAYERS = 4
"""The least number of layers for a statement about a trend."""
MAX_LISTED = 6
"""The largest number of blocks that are listed one by one."""
REDUNDANT = 0.95
"""The similarity from which two heads or blocks count as nearly the same."""


def paragraphs(weights: ModelWeights, activity: Activity | None = None) -> list[str]:
    """The paragraphs of an inspection.

    Args:
        weights: statistics of the weights.
        activity: measurements of activations; None if the model was not run.
    """
    texts = [_overall(combine(weights.tallies)), _variation(weights), _ranks(weights)]
    if activity is not None:
        blocks = (_blocks(stack) for stack in activity.blocks)
        texts += [_outliers(activity), *blocks, _heads(activity), *activity.missing]
    return [paragraph for paragraph in texts if paragraph]


def _overall(magnitudes: Magnitudes) -> str:
    tenth = magnitudes.top_share(0.1)
    zeros = f"; {_share(magnitudes.zeros / magnitudes.number)} are exactly zero" if magnitudes.zeros else ""
    if tenth > 1.25 * GAUSSIAN_TOP_TENTH:
        concentration = "much of this sum is in few weights"
    else:
        concentration = "about as if they were drawn at random, so no few weights carry the model"
    return (
        f"What fraction of the parameters is far from zero? Of {magnitudes.number:,} parameters "
        f"{_share(magnitudes.at_least(0.1))} are 0.1 or more in magnitude, {_share(magnitudes.at_least(1.0))} are 1 or "
        f"more, and {_share(1 - magnitudes.at_least(0.01))} are below 0.01{zeros}. Half are below "
        f"{magnitudes.quantile(0.5):.3g}. "
        f"The largest tenth holds {tenth:.0%} of the sum of all magnitudes, where a Gaussian's holds "
        f"{GAUSSIAN_TOP_TENTH:.0%}: {concentration}."
    )


def _variation(weights: ModelWeights) -> str:
    far = weights.far
    layers = {_layer(layer): magnitudes.at_least(far) for layer, magnitudes in weights.by_layer.items()}
    kinds = {kind: weights.by_kind[kind].at_least(far) for kind in IN_BLOCKS if kind in weights.kinds}
    cells = {
        f"{kind} of {_layer(layer)}": combine(tallies).at_least(far)
        for layer in weights.by_layer
        for kind in kinds
        if (tallies := weights.matrices(layer, kind))
    }
    if not cells:
        return ""
    of_biases = ""
    if (biases := weights.by_kind.get(BIAS)) is not None:
        half = f"half are below {biases.quantile(0.5):.2g}"
        of_biases = f" Of the biases {_share(biases.at_least(far))} are {far:g} or more; {half}."
    return (
        f"How does that vary by layer? Of the weights of a layer {_extremes(layers)} are {far:g} or more"
        f"{_trend(layers)}. By type of matrix it is {_extremes(kinds)}, and by single matrix "
        f"{_extremes(cells)}.{of_biases}"
    )


def _ranks(weights: ModelWeights) -> str:
    spectra = [
        (f"{tally.kind} of {_layer(tally.layer)}", tally.spectrum)
        for tally in weights.tallies
        if tally.spectrum and tally.layer is not None
    ]
    if not spectra:
        return ""
    ranks = {name: spectrum.effective / spectrum.full for name, spectrum in spectra}
    least, most = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
    energy = fmean(spectrum.rank_90 / spectrum.full for _, spectrum in spectra)
    return (
        f"The matrices in the blocks have an effective rank (the exponential of the entropy of their singular values) "
        f"of {fmean(ranks.values()):.0%} of the full rank on average, from {ranks[least]:.0%} ({least}) to "
        f"{ranks[most]:.0%} ({most}). On average {energy:.0%} of the "
        "singular values hold nine tenths of the sum of their squares."
    )


def _outliers(activity: Activity) -> str:
    ratios = [(matrix.ratio, matrix) for matrix in activity.inputs if matrix.ratio is not None]
    if not ratios:
        return ""
    ratio, worst = max(ratios, key=lambda pair: pair[0])
    typical = sorted(value for value, _ in ratios)[len(ratios) // 2]
    name = worst.kind if worst.layer is None else f"{worst.kind} of {_layer(worst.layer)}"
    return (
        f"On {activity.rows} rows of {activity.source} ({activity.tokens:,} tokens) the largest input channel of a "
        f"matrix is typically {typical:.1f} times the median one, and at most {ratio:.0f} times, in {name}, where "
        f"{worst.outliers} of {worst.channels:,} channels are above six times the median."
    )


def _blocks(blocks: BlockSimilarity) -> str:
    influence, count = blocks.influence, len(blocks.influence)
    if count < 2:
        return ""
    order = sorted(range(count), key=influence.__getitem__)
    stack = "" if blocks.stack == "blocks" else f" of the {blocks.stack}"
    extremes = (
        f"Of the blocks{stack}, block {order[0]} changes the hidden states least (1 − cosine is "
        f"{influence[order[0]]:.2f}) and block {order[-1]} most ({influence[order[-1]]:.2f})"
    )
    if blocks.similarity is None:
        return f"{extremes}."
    redundant = [block for block in range(count) if blocks.similarity[block][block + 1] >= REDUNDANT]
    if not redundant:
        return f"{extremes}; no block leaves them nearly unchanged (CKA of {REDUNDANT:g} or more)."
    numbers = ", ".join(map(str, redundant))
    subject = f"block {numbers}" if len(redundant) <= MAX_LISTED else f"{len(redundant)} of the {count} blocks"
    verb = "leaves" if len(redundant) == 1 else "leave"
    return f"{extremes}; {subject} {verb} them nearly unchanged (CKA of {REDUNDANT:g} or more)."


def _heads(activity: Activity) -> str:
    nearest = [(value, attention.layer) for attention in activity.heads for value in attention.nearest]
    if not nearest:
        return ""
    redundant = sum(value >= REDUNDANT for value, _ in nearest)
    value, layer = max(nearest)
    return (
        f"Of {len(nearest)} heads {redundant or 'none'} nearly repeat another of their layer; the two most alike are "
        f"in {_layer(layer)} (similarity {value:.2f})."
    )


def _layer(label: str) -> str:
    """`layer 3`, or `encoder layer 3`."""
    stack, _, number = label.rpartition(" ")
    return f"{stack} layer {number}".strip()


def _extremes(values: Mapping[str, float]) -> str:
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if low == high:
        return f"{_share(values[low])} ({low})"
    return f"{_share(values[low])} ({low}) to {_share(values[high])} ({high})"


def _trend(layers: Mapping[str, float]) -> str:
    """A clause on the trend with depth; "" for few layers, or for several stacks, which are not one sequence."""
    values: Sequence[float] = list(layers.values())
    if len(values) < MIN_LAYERS or not all(layer.startswith("layer ") for layer in layers) or len(set(values)) < 2:
        return ""
    result: Any = spearmanr(range(len(values)), values)
    correlation = float(result[0])
    if abs(correlation) < TREND:
        return ", with no trend from the first to the last"
    return f", {'more' if correlation > 0 else 'fewer'} the deeper it is"


def _share(value: float) -> str:
    """A percentage with the digits that it needs."""
    if value == 0 or value >= 0.0995:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.00095 else "under 0.1%"
