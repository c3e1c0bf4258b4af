"""Describe an inspection in sentences: weights far from zero by layer, ranks, outliers, similarity of blocks and heads.

The sentences are the same for every model; only the numbers differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from typing import Any

from scipy.stats import norm, spearmanr

from laconic.numerics.inspection import Magnitudes
from laconic.report.inspection.activity import Activity, BlockSimilarity
from laconic.report.inspection.weights import BIAS, IN_BLOCKS, ModelWeights, combine

TENTH_OF_A_GAUSSIAN = exp(-(norm.ppf(0.95) ** 2) / 2)
"""The share of the L1 norm in the largest tenth of Gaussian weights, for comparison."""
TREND = 0.7
"""The least absolute rank correlation with depth that counts as a trend."""
LONG_ENOUGH = 4
"""The least number of layers for a statement about a trend."""
NAMED = 6
"""The largest number of blocks that are listed one by one."""
REDUNDANT = 0.95
"""The similarity from which two heads or blocks count as nearly the same."""


def paragraphs(weights: ModelWeights, found: Activity | None = None) -> list[str]:
    """The paragraphs of an inspection.

    Args:
        weights: statistics of the weights.
        found: measurements of activations; None if the model was not run.
    """
    texts = [_overall(combine(weights.tallies)), _variation(weights), _ranks(weights)]
    if found is not None:
        texts += [_outliers(found), *(_blocks(stack) for stack in found.blocks), *_heads(found), *found.missing]
    return [paragraph for paragraph in texts if paragraph]


def _overall(all_of: Magnitudes) -> str:
    tenth = all_of.top_share(0.1)
    zeros = f"; {_share(all_of.zeros / all_of.number)} are exactly zero" if all_of.zeros else ""
    if tenth > 1.25 * TENTH_OF_A_GAUSSIAN:
        concentration = "much of what there is lies in few weights"
    else:
        concentration = "about as if they were drawn at random, so no few weights carry the model"
    return (
        f"What fraction of the parameters is far from zero? Of {all_of.number:,} parameters "
        f"{_share(all_of.at_least(0.1))} are 0.1 or more in magnitude, {_share(all_of.at_least(1.0))} are 1 or more, "
        f"and {_share(1 - all_of.at_least(0.01))} are below 0.01{zeros}. Half are below {all_of.quantile(0.5):.3g}. "
        f"The largest tenth holds {tenth:.0%} of the sum of all magnitudes, where a Gaussian's holds "
        f"{TENTH_OF_A_GAUSSIAN:.0%}: {concentration}."
    )


def _variation(weights: ModelWeights) -> str:
    far = weights.far
    layers = {_layer(layer): found.at_least(far) for layer, found in weights.by_layer.items()}
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
    found = [(tally, tally.spectrum) for tally in weights.tallies if tally.spectrum and tally.layer is not None]
    if not found:
        return ""
    used = {
        f"{tally.kind} of {_layer(tally.layer or '')}": spectrum.effective / spectrum.full for tally, spectrum in found
    }
    least, most = min(used, key=used.__getitem__), max(used, key=used.__getitem__)
    energy = sum(spectrum.rank_90 / spectrum.full for _, spectrum in found) / len(found)
    return (
        f"The matrices in the blocks have an effective rank (the exponential of the entropy of their singular values) "
        f"of {sum(used.values()) / len(used):.0%} of the full rank on average, from {used[least]:.0%} ({least}) to "
        f"{used[most]:.0%} ({most}). On average {energy:.0%} of the "
        "singular values hold nine tenths of the sum of their squares."
    )


def _outliers(found: Activity) -> str:
    ratios = [(matrix, matrix.ratio) for matrix in found.inputs if matrix.ratio is not None]
    if not ratios:
        return ""
    worst, ratio = max(ratios, key=lambda pair: pair[1])
    typical = sorted(value for _, value in ratios)[len(ratios) // 2]
    where = worst.kind if worst.layer is None else f"{worst.kind} of {_layer(worst.layer)}"
    return (
        f"On {found.rows} rows of {found.source} ({found.tokens:,} tokens) the largest input channel of a matrix is "
        f"typically {typical:.1f} times the median one, and at most {ratio:.0f} times, in {where}, where "
        f"{worst.outliers} of {worst.channels:,} channels are above six times the median."
    )


def _blocks(found: BlockSimilarity) -> str:
    order = sorted(range(len(found.influence)), key=found.influence.__getitem__)
    whose = "" if found.stack == "blocks" else f" of the {found.stack}"
    if len(order) < 2:
        return ""
    extremes = (
        f"Of the blocks{whose}, block {order[0]} changes the hidden states least (1 − cosine is "
        f"{found.influence[order[0]]:.2f}) and block {order[-1]} most ({found.influence[order[-1]]:.2f})"
    )
    if found.similarity is None:
        return f"{extremes}."
    alike = [at for at in range(len(order)) if found.similarity[at][at + 1] >= REDUNDANT]
    if not alike:
        return f"{extremes}; no block leaves them nearly unchanged (CKA of {REDUNDANT:g} or more)."
    numbers = ", ".join(map(str, alike))
    named = f"block {numbers}" if len(alike) <= NAMED else f"{len(alike)} of the {len(order)} blocks"
    verb = "leaves" if len(alike) == 1 else "leave"
    return f"{extremes}; {named} {verb} them nearly unchanged (CKA of {REDUNDANT:g} or more)."


def _heads(found: Activity) -> Iterator[str]:
    pairs = [(value, attention.layer) for attention in found.heads for value in attention.nearest]
    if pairs:
        alike = sum(value >= REDUNDANT for value, _ in pairs)
        value, layer = max(pairs)
        yield (
            f"Of {len(pairs)} heads {alike or 'none'} nearly repeat another of their layer; the two most alike are in "
            f"{_layer(layer)} (similarity {value:.2f})."
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
    if len(values) < LONG_ENOUGH or not all(layer.startswith("layer ") for layer in layers) or len(set(values)) < 2:
        return ""
    found: Any = spearmanr(range(len(values)), values)
    correlation = float(found[0])
    if abs(correlation) < TREND:
        return ", with no trend from the first to the last"
    return f", {'more' if correlation > 0 else 'fewer'} the deeper it is"


def _share(value: float) -> str:
    """A percentage with the digits that it needs."""
    if value == 0 or value >= 0.0995:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.00095 else "under 0.1%"
