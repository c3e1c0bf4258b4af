"""Statistics of the weights of a model by layer and role: magnitudes, concentration, rank and bits.

Matrices are analyzed as the model uses them: dequantized, with pruned weights as zeros, and low-rank layers as their
factors. Only one matrix is in memory at a time. Matrices with the same layer and role (a decoder block has two queries)
are counted together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from laconic.formats import Format
from laconic.model import Group, LanguageModel, Role, Site
from laconic.numerics.inspection import Magnitudes, effective_rank, energy_rank, singular_values
from laconic.progress import Track, silent

ROLE_NAMES: dict[tuple[Group, Role], str] = {
    (Group.ATTENTION, Role.QUERY): "query",
    (Group.ATTENTION, Role.KEY): "key",
    (Group.ATTENTION, Role.VALUE): "value",
    (Group.ATTENTION, Role.FUSED): "query-key-value",
    (Group.ATTENTION, Role.OUTPUT): "attention out",
    (Group.FFN, Role.INNER): "ffn in",
    (Group.FFN, Role.OUTPUT): "ffn out",
    # In a model of unknown architecture, the roles of attention matrices are not known.
    (Group.ATTENTION, Role.OTHER): "attention",
    (Group.FFN, Role.OTHER): "ffn",
    (Group.EXPERTS, Role.INNER): "experts in",
    (Group.EXPERTS, Role.OUTPUT): "experts out",
}
EMBEDDING, HEAD, OTHER_MATRIX, NORM, BIAS = "embedding", "head", "other", "norm", "bias"
IN_BLOCKS = tuple(ROLE_NAMES.values())
KIND_ORDER = (EMBEDDING, *IN_BLOCKS, HEAD, OTHER_MATRIX, NORM, BIAS)
THRESHOLDS = (0.001, 0.01, 0.1, 1.0)
TOP = (0.01, 0.1, 0.5)
MAX_SINGULAR_VALUES = 128
"""The largest number of singular values that are kept of a matrix, at equally spaced indices."""


@dataclass(frozen=True, kw_only=True)
class SingularValues:
    """The singular values of a matrix and its ranks.

    Args:
        values: up to 128 singular values at equally spaced indices, in falling order.
        effective: effective rank, exp of the entropy of σ / Σσ (Roy & Vetterli 2007).
        rank_90: the number of singular values that contain 90 % of Σσ².
        rank_99: the number that contain 99 %.
        full: min(out, in).
    """

    values: tuple[float, ...]
    effective: float
    rank_90: int
    rank_99: int
    full: int

    @classmethod
    def of(cls, weight: Tensor) -> "SingularValues":
        """The spectrum of one matrix.

        Example:
            >>> from torch import eye
            >>> spectrum = SingularValues.of(eye(4))
            >>> round(spectrum.effective, 4), spectrum.rank_90, spectrum.full
            (4.0, 4, 4)
        """
        s = singular_values(weight)
        step = max(1, -(-len(s) // MAX_SINGULAR_VALUES))
        return cls(
            values=tuple(s[::step].tolist()),
            effective=effective_rank(s),
            rank_90=energy_rank(s, 0.9),
            rank_99=energy_rank(s, 0.99),
            full=len(s),
        )


@dataclass(frozen=True, kw_only=True)
class WeightStats:
    """Statistics of one matrix or vector.

    Args:
        name: the path of the parameter.
        kind: the role of the parameter, like `query`, `ffn in` or `norm`.
        layer: label of its block; None outside the blocks.
        shape: the shape of the tensor.
        bits: bits in a file per entry, including zeros.
        magnitudes: the distribution of |w|.
        spectrum: the singular values of a matrix; None for a vector.
    """

    name: str
    kind: str
    layer: str | None
    shape: tuple[int, ...]
    bits: float
    magnitudes: Magnitudes
    spectrum: SingularValues | None

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        spectrum = self.spectrum
        ranks = {} if spectrum is None else {
            "effective_rank": spectrum.effective, "rank_90": spectrum.rank_90, "rank_99": spectrum.rank_99,
            "full_rank": spectrum.full, "singular_values": list(spectrum.values),
        }  # fmt: skip
        parameter = {"name": self.name, "kind": self.kind, "layer": self.layer, "shape": list(self.shape)}
        return {**parameter, "stored_bits": self.bits, **magnitudes_json(self.magnitudes), **ranks}


def magnitudes_json(magnitudes: Magnitudes) -> dict[str, Any]:
    """Figures of a distribution of |w| as JSON values.

    Args:
        magnitudes: the distribution.

    Returns:
        Moments, quantiles, shares above thresholds, shares of the L1 norm, and `histogram`: the fraction of the entries
        in each bin, by the magnitude at which the bin begins.
    """
    begins, heights = magnitudes.histogram()
    return {
        "number": magnitudes.number,
        "sparsity": magnitudes.zeros / max(magnitudes.number, 1),
        "mean": magnitudes.mean,
        "deviation": magnitudes.deviation,
        "kurtosis": magnitudes.kurtosis,
        "largest": magnitudes.largest,
        "median": magnitudes.quantile(0.5),
        "at_least": {f"{threshold:g}": magnitudes.at_least(threshold) for threshold in THRESHOLDS},
        "top_l1": {f"{share:g}": magnitudes.top_share(share) for share in TOP},
        "histogram": {f"{begin:.3g}": height for begin, height in zip(begins, heights, strict=True) if height},
    }


def combine(tallies: Iterable[WeightStats]) -> Magnitudes:
    """The distribution of |w| over several matrices together.

    Args:
        tallies: statistics of at least one matrix or vector.
    """
    return reduce(add, (tally.magnitudes for tally in tallies))


MIN_SHARE = 0.02
"""Least fraction of the weights in the blocks that is above a threshold, so that layers can be compared by it."""


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """Statistics of all weights of a model.

    Args:
        tallies: one for each matrix and vector.
        layers: labels of the blocks in forward order.
    """

    tallies: tuple[WeightStats, ...]
    layers: tuple[str, ...]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of weights that the model has, in the order to show them."""
        kinds = {tally.kind for tally in self.tallies}
        return tuple(kind for kind in KIND_ORDER if kind in kinds)

    @cached_property
    def by_kind(self) -> Mapping[str, Magnitudes]:
        """The distribution over the weights of each kind."""
        return {kind: combine(tally for tally in self.tallies if tally.kind == kind) for kind in self.kinds}

    @cached_property
    def by_layer(self) -> Mapping[str, Magnitudes]:
        """The distribution over the matrices of each block."""
        return {layer: combine(tallies) for layer in self.layers if (tallies := self.matrices(layer))}

    @cached_property
    def far(self) -> float:
        """The magnitude from which a weight is far from zero: the largest threshold that enough weights reach."""
        matrices = [tally for tally in self.tallies if tally.spectrum and tally.layer is not None]
        together = combine(matrices or self.tallies)
        reached = [threshold for threshold in THRESHOLDS if together.at_least(threshold) >= MIN_SHARE]
        return max(reached, default=THRESHOLDS[0])

    def matrices(self, layer: str | None = None, kind: str | None = None) -> list[WeightStats]:
        """The statistics of matrices.

        Args:
            layer: only of this layer; None for all.
            kind: only of this kind; None for all.
        """
        return [
            tally
            for tally in self.tallies
            if tally.spectrum and layer in (None, tally.layer) and kind in (None, tally.kind)
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values: of the whole model, by kind, by layer, by matrix."""
        return {
            "all": magnitudes_json(combine(self.tallies)),
            "kinds": {kind: magnitudes_json(magnitudes) for kind, magnitudes in self.by_kind.items()},
            "layers": {layer: magnitudes_json(magnitudes) for layer, magnitudes in self.by_layer.items()},
            "matrices": [tally.to_json() for tally in self.tallies],
        }


def weight_statistics(lm: LanguageModel, track: Track = silent) -> ModelWeights:
    """Statistics of all weights of a model, collected one matrix at a time; a shared matrix counts once.

    Args:
        lm: the model, with weights.
        track: shows progress.
    """
    labels = layer_labels(lm)
    sites = list({site.storage: site for site in reversed(lm.sites(("all",)))}.values())[::-1]
    # Singular values take most of the time, and a word embedding more of it than a whole block.
    work = [float(max(site.shape)) * min(site.shape) ** 2 for site in sites]
    tallies = [_site_stats(lm, site, labels) for site in track(sites, "Measuring the weights", work)]
    return ModelWeights(tallies=(*tallies, *_vector_stats(lm, labels)), layers=tuple(labels.values()))


def layer_labels(lm: LanguageModel) -> dict[str, str]:
    """Labels of blocks by their path.

    Args:
        lm: the model.

    Returns:
        The number of each block, after `encoder` or `decoder` where the model has both, in forward order.
    """
    stacks = list(lm.stacks())
    return {
        path: f"{stack.blocks.partition('.')[0]} {number}" if len(stacks) > 1 else str(number)
        for stack, blocks in stacks
        for number, (path, _) in enumerate(blocks)
    }


def kind_of(site: Site) -> str:
    """The role of a matrix in one or two words, like `query` or `ffn in`."""
    outside = {Group.EMBEDDING: EMBEDDING, Group.HEAD: HEAD}
    return ROLE_NAMES.get((site.group, site.role), outside.get(site.group, OTHER_MATRIX))


def _site_stats(lm: LanguageModel, site: Site, labels: Mapping[str, str]) -> WeightStats:
    weight = site.weight()
    return WeightStats(
        name=site.name,
        kind=kind_of(site),
        layer=None if site.block is None else labels[site.block],
        shape=site.shape,
        bits=8 * lm.site_nbytes(site) / weight.numel(),
        magnitudes=Magnitudes.measure(weight),
        spectrum=SingularValues.of(weight),
    )


def _vector_stats(lm: LanguageModel, labels: Mapping[str, str]) -> Iterator[WeightStats]:
    """Statistics of all other parameters: norms, biases, position embeddings."""
    sites = lm.sites(("all",))
    modules = {place.name: place.module for site in sites if site.stack is None for place in site.places}
    matrices = {f"{path}.{name}" for path, module in modules.items() for name in _matrix_names(module)}
    stacks = {site.unit: site.stack for site in sites if site.stack is not None}
    # A stack is a parameter of transformers' module, or a module of its own.
    matrices |= stacks.keys()
    matrices |= {f"{path}.{name}" for path, stack in stacks.items() for name, _ in stack.named_parameters()} - {
        f"{path}.bias" for path in stacks
    }
    for name, parameter in lm.model.named_parameters():
        if name in matrices or not parameter.is_floating_point():
            continue
        bias = name.endswith(("bias", ".shift"))
        block = next((path for path in labels if name.startswith(f"{path}.")), None)
        yield WeightStats(
            name=name,
            kind=BIAS if bias else OTHER_MATRIX if parameter.ndim > 1 else NORM,
            layer=None if block is None else labels[block],
            shape=tuple(parameter.shape),
            bits=8.0 * lm.dtype.itemsize,
            magnitudes=Magnitudes.measure(parameter),
            spectrum=None,
        )


def _matrix_names(module: nn.Module) -> list[str]:
    """Names of the parameters of a layer that make up its matrix: all but the bias."""
    if isinstance(module, Format):
        bias = module.bias
        return [name for name, parameter in module.named_parameters() if parameter is not bias]
    return ["weight"]
