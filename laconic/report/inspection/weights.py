"""The numbers in a model by layer and by what they do: how large, how concentrated, of which rank, in how many bits.

Matrices are those that the model multiplies by: decoded, with their zeros, and of a low rank the factors. One is held
at a time. All that share a layer and a kind (a decoder block has two queries) are counted together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from laconic.formats import Format
from laconic.model import Group, LanguageModel, Site
from laconic.numerics.inspection import Magnitudes
from laconic.progress import Track, silent
from laconic.report.inspection.tally import (
    BIAS,
    EMBEDDING,
    HEAD,
    KINDS,
    NORM,
    ORDER,
    OTHER_MATRIX,
    THRESHOLDS,
    Spectrum,
    Tally,
    figures,
    together,
)

TELLING = 0.02
"""Fraction of the weights in the blocks that a threshold leaves at least, to tell layers from each other."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Every tally; layers: labels of the blocks in forward order."""

    tallies: tuple[Tally, ...]
    layers: tuple[str, ...]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Those that there are, in the order to show them."""
        there = {tally.kind for tally in self.tallies}
        return tuple(kind for kind in ORDER if kind in there)

    @cached_property
    def by_kind(self) -> Mapping[str, Magnitudes]:
        return {kind: together(tally for tally in self.tallies if tally.kind == kind) for kind in self.kinds}

    @cached_property
    def by_layer(self) -> Mapping[str, Magnitudes]:
        """The matrices of each block."""
        held = {layer: self.matrices(layer=layer) for layer in self.layers}
        return {layer: together(tallies) for layer, tallies in held.items() if tallies}

    @cached_property
    def far(self) -> float:
        """From which magnitude a weight counts as far from zero: the largest threshold that some weights reach."""
        matrices = [tally for tally in self.tallies if tally.spectrum and tally.layer is not None]
        found = together(matrices or self.tallies)
        return max((one for one in THRESHOLDS if found.at_least(one) >= TELLING), default=THRESHOLDS[0])

    def matrices(self, layer: str | None = None, kind: str | None = None) -> list[Tally]:
        """Those with a spectrum, of this layer and kind where one is given."""
        return [
            tally
            for tally in self.tallies
            if tally.spectrum and layer in (None, tally.layer) and kind in (None, tally.kind)
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures: of everything, by kind, by layer, by matrix."""
        return {
            "all": figures(together(self.tallies)),
            "kinds": {kind: figures(found) for kind, found in self.by_kind.items()},
            "layers": {layer: figures(found) for layer, found in self.by_layer.items()},
            "matrices": [tally.to_json() for tally in self.tallies],
        }


def weigh(lm: LanguageModel, track: Track = silent) -> Weights:
    """Look at every number of `lm`, one matrix at a time; what is shared counts once."""
    labels = layer_labels(lm)
    sites = list({id(site.parameter): site for site in reversed(lm.sites(("all",)))}.values())[::-1]
    # Singular values take most of the time, and a word embedding more of it than a whole block.
    work = [float(max(site.shape)) * min(site.shape) ** 2 for site in sites]
    tallies = [_of_site(lm, site, labels) for site in track(sites, "Looking at the weights", work)]
    return Weights(tallies=(*tallies, *_vectors(lm, labels)), layers=tuple(labels.values()))


def layer_labels(lm: LanguageModel) -> dict[str, str]:
    """By the path of each block, its number, after `encoder` or `decoder` where there are both."""
    stacks = list(lm.stacks())
    return {
        path: f"{stack.blocks.partition('.')[0]} {number}" if len(stacks) > 1 else str(number)
        for stack, blocks in stacks
        for number, (path, _) in enumerate(blocks)
    }


def kind_of(site: Site) -> str:
    """What the matrix does, in two words at most."""
    outside = {Group.EMBEDDING: EMBEDDING, Group.HEAD: HEAD}
    return KINDS.get((site.group, site.role), outside.get(site.group, OTHER_MATRIX))


def _of_site(lm: LanguageModel, site: Site, labels: Mapping[str, str]) -> Tally:
    weight = site.weight()
    return Tally(
        name=site.name,
        kind=kind_of(site),
        layer=None if site.block is None else labels[site.block],
        shape=site.shape,
        bits=8 * lm.site_nbytes(site) / weight.numel(),
        magnitudes=Magnitudes.of(weight),
        spectrum=Spectrum.of(weight),
    )


def _vectors(lm: LanguageModel, labels: Mapping[str, str]) -> Iterator[Tally]:
    """Everything that is no site: norms, biases, tables of positions."""
    places = [place for site in lm.sites(("all",)) for place in site.places]
    held = {f"{place.name}.{name}" for place in places for name in _matrix_names(place.module)}
    for name, parameter in lm.model.named_parameters():
        if name in held or not parameter.is_floating_point():
            continue
        bias = name.rpartition(".")[2] in ("bias", "shift")
        block = next((path for path in labels if name.startswith(f"{path}.")), None)
        yield Tally(
            name=name,
            kind=OTHER_MATRIX if parameter.ndim > 1 else BIAS if bias else NORM,
            layer=None if block is None else labels[block],
            shape=tuple(parameter.shape),
            bits=8.0 * lm.dtype.itemsize,
            magnitudes=Magnitudes.of(parameter),
            spectrum=None,
        )


def _matrix_names(module: nn.Module) -> list[str]:
    """Parameters of a site's module that are the matrix: of a format all but its bias."""
    if isinstance(module, Format):
        bias = module.bias
        return [name for name, parameter in module.named_parameters() if parameter is not bias]
    return ["weight"]
