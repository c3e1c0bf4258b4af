"""Sequential calibration: statistics block by block, so that later blocks see the errors of earlier ones.

A block runs twice on every batch: once uncompressed, to collect the statistics of its layers, and once compressed, to
compute the inputs of the next block. SparseGPT and GPTQ proceed in the same way. All layers of a block are measured
while the whole block is uncompressed. Measuring again after each layer costs several times the work, and improves the
result on held-out rows only in some cases.

Gradient statistics are collected once, on the dense model, unless `refresh` asks for collecting them again.

With `anchored`, an unchanged copy of the model runs in parallel, and every layer is fitted to the outputs of the copy
(`laconic.calibrate.anchor`). Layers that write to the residual stream also compensate for its drift, including errors
of earlier layers in their own block; the block therefore runs again for each group of layers with the same input.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from laconic.calibrate.activation_capture import (
    ActivationCapture,
    Residual,
    RunUntil,
    Sublayer,
    find_residual,
    find_sublayers,
    paths_to_capture,
    residual_before,
)
from laconic.calibrate.anchor import Anchor
from laconic.calibrate.collation import to_device
from laconic.calibrate.collect_stats import Calibration, check_stats, measure_stats
from laconic.calibrate.layer_stats import LayerStats, Problem
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.starved import StarvedExperts, warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, InputCovariance, InputStatistic, Statistic
from laconic.calibrate.stream import Stream
from laconic.errors import UserError
from laconic.model import Group, LanguageModel, Site

LayerProblems = list[tuple[Site, Problem]]


@dataclass(frozen=True)
class _Piece:
    """The part of the model that runs while its layers are measured: one block, or the whole model (`block` None)."""

    sites: list[Site]
    block: str | None = None
    sublayers: tuple[Sublayer, ...] = ()
    residual: Residual = Residual.UNKNOWN

    def run(self, stream: Stream, number: int) -> None:
        """Run this part of the model on one batch."""
        if self.block is None:
            stream.run_whole(number)
        else:
            stream.run(number)

    def groups(self, by_input: bool) -> list[list[Site]]:
        """Groups of layers that are measured together: those with the same input, or all of them."""
        if not by_input:
            return [self.sites] if self.sites else []
        inputs: dict[str, list[Site]] = {}
        for site in self.sites:
            inputs.setdefault(site.input, []).append(site)
        return list(inputs.values())


@dataclass(frozen=True, kw_only=True)
class SequentialConfig:
    """Settings of `sequential_calibrate`.

    Args:
        anchored: fit every layer to the outputs of the dense model, on the inputs of the partly compressed one.
        refresh: number of blocks after which the gradient statistics are collected again; None for never.
    """

    anchored: bool = False
    refresh: int | None = None


def sequential_calibrate(
    lm: LanguageModel,
    data: Calibration,
    needs: Collection[type[Statistic]],
    sites: Sequence[Site],
    config: SequentialConfig | None = None,
    gradient_stats: Mapping[str, LayerStats] | None = None,
) -> Iterator[LayerProblems]:
    """Yield the layers of each block with their problems, in forward order; embeddings first, heads last.

    The caller replaces the layers it got before it asks for the next ones, so that later layers are measured on the
    compressed model.

    Args:
        lm: the model; the caller replaces layers between two items.
        data: the calibration data.
        needs: the types of statistics to collect.
        sites: the layers, in forward order.
        config: settings; None for the defaults.
        gradient_stats: gradient statistics that were collected before, by layer name; None to collect them.

    Yields:
        Pairs of a layer and its problem: all layers of one block, or with `anchored` the layers of a block that read
        the same input.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite; or `anchored` is set and
            a layer is the matrix of an expert.
    """
    config = config or SequentialConfig()
    check_anchored(config, sites)
    yield from _SequentialPass(lm, data, needs, sites, config).problems(gradient_stats)


def check_anchored(config: SequentialConfig, sites: Sequence[Site]) -> None:
    """Raise UserError if `anchored` is set and one of `sites` is the matrix of an expert."""
    experts = next((site.unit for site in sites if site.stack is not None), None)
    if config.anchored and experts is not None:
        raise UserError(
            f"anchored must be left out for experts such as '{experts}': the router of the compressed model may send a "
            "token to other experts, which have no outputs in the original model to fit; use sequential, or leave the "
            "experts out of the targets."
        )


class _SequentialPass:
    def __init__(
        self,
        lm: LanguageModel,
        data: Calibration,
        needs: Collection[type[Statistic]],
        sites: Sequence[Site],
        config: SequentialConfig,
    ) -> None:
        self.lm, self.data, self.sites, self.refresh = lm, data, sites, config.refresh
        self.gradient_kinds = {kind for kind in needs if issubclass(kind, GradientStatistic)}
        self.input_kinds = {kind for kind in needs if issubclass(kind, InputStatistic)}
        batches = [to_device(batch, lm.device) for batch in data.batches]
        self.changed = Stream(lm, batches)
        self.dense = Stream(replace(lm, model=copy.deepcopy(lm.model)), batches) if config.anchored else None
        self.streams = [self.changed] if self.dense is None else [self.changed, self.dense]
        self.gradients: dict[str, LayerStats] = {}
        self.done: set[str] = set()
        self.starved: list[StarvedExperts] = []

    def problems(self, gradient_stats: Mapping[str, LayerStats] | None) -> Iterator[LayerProblems]:
        self.gradients = dict(gradient_stats) if gradient_stats is not None else self._collect_gradients(self.sites)
        for piece in self._pieces():
            for sites in piece.groups(by_input=self.dense is not None):
                yield self._measure(piece, sites)
                self.done |= {site.name for site in sites}
        # A pass that collected statistics before has given a notice about the same layers.
        if gradient_stats is None:
            warn_of_starved(self.starved)

    def _collect_gradients(self, sites: Sequence[Site]) -> dict[str, LayerStats]:
        stats, starved = measure_stats(self.lm, self.data, self.gradient_kinds, sites)
        self.starved += starved
        return stats

    def _pieces(self) -> Iterator[_Piece]:
        yield _Piece([site for site in self.sites if site.group is Group.EMBEDDING])
        entered = 0
        for stack, blocks in self.lm.stacks():
            paths = [path for path, _ in blocks]
            sites = [site for site in self.sites if site.block in paths]
            if not sites:
                continue
            # Not a generator: both streams have to enter.
            if not all([stream.enter(paths) for stream in self.streams]):
                for path in paths:
                    yield _Piece([site for site in sites if site.block == path])
                continue
            # Blocks after the last one that has sites need not run.
            last = max(paths.index(site.block) for site in sites if site.block is not None)
            for number, path in enumerate(self.data.track(paths[: last + 1], f"Compressing {stack.blocks} in order")):
                for stream in self.streams if number else ():
                    stream.advance()
                if self.refresh is not None and entered and entered % self.refresh == 0:
                    self.gradients |= self._collect_gradients(
                        [site for site in self.sites if site.name not in self.done]
                    )
                yield self._block(
                    path, [site for site in sites if site.block == path], find_sublayers(stack, path, self.lm.model)
                )
                entered += 1
        yield _Piece([site for site in self.sites if site.group is Group.HEAD])

    def _block(self, path: str, sites: list[Site], parts: list[Sublayer]) -> _Piece:
        residual = Residual.UNKNOWN
        if self.dense is not None and sites:
            with ActivationCapture(self.dense.lm.model, paths_to_capture(path, parts)) as capture:
                self.dense.run(0)
            residual = find_residual(capture, path, parts)
        return _Piece(sites, path, tuple(parts), residual)

    def _measure(self, piece: _Piece, sites: list[Site]) -> LayerProblems:
        """Run the piece over every batch, collect statistics of `sites`, and return their problems."""
        outputs, in_features = {site.name: site.shape[0] for site in sites}, sites[0].shape[1]
        lookup = any(site.is_lookup for site in sites)
        anchor = None if self.dense is None or lookup else Anchor(in_features, outputs, self.lm.device)
        # An anchor collects the input covariance by itself.
        kinds = self.input_kinds if anchor is None else self.input_kinds - {InputCovariance}
        with Recorder(self.lm, sites, kinds) as recorder:
            if anchor is not None and self.dense is not None:
                self._compare(piece, sites, anchor, recorder)
            elif kinds:
                self._run_batches(piece, recorder)
        measured = recorder.stats()
        self.starved += recorder.starved
        check_stats(measured, kinds)
        stats = {site.name: self.gradients[site.name] | measured[site.name] for site in sites}
        if anchor is None:
            return [(site, Problem(weight=site.weight(), stats=stats[site.name])) for site in sites]
        # Layers with the same input may be solved as one matrix, so either all of them are centred or none.
        centred = all(site.bias() is not None for site in sites)
        return [(site, anchor.problem(site.name, site.weight(), stats[site.name], centred)) for site in sites]

    def _run_batches(self, piece: _Piece, recorder: Recorder) -> None:
        """Run every batch, up to the last call of a layer that is measured."""
        with RunUntil(recorder.modules) as until:
            for number, batch in enumerate(self.changed.batches):
                recorder.start(batch)
                with until.run():
                    piece.run(self.changed, number)

    @torch.no_grad()
    def _compare(self, piece: _Piece, sites: list[Site], anchor: Anchor, recorder: Recorder) -> None:
        """Run every batch through both models, and add each layer's inputs and the outputs to reach to `anchor`."""
        assert self.dense is not None
        adds_drift = piece.block is not None and piece.residual is not Residual.UNKNOWN
        names = [site.name for site in sites]
        paths = [*(paths_to_capture(piece.block, piece.sublayers) if piece.block and adds_drift else ()), *names]
        place = sites[0].places[0]
        with ExitStack() as hooks:
            if piece.block is not None:
                hooks.enter_context(self.changed.decode_codes())
            runs = [hooks.enter_context(_PieceCapture(stream, piece, paths, names)) for stream in self.streams]
            changed, dense = (run.activations for run in runs)
            for number, batch in enumerate(self.changed.batches):
                recorder.start(batch)
                for run in runs:
                    run(number)
                for call, x in enumerate(changed.inputs[names[0]]):
                    rows = recorder.rows(x.shape[:-1], place.reads[call % len(place.reads)], place.tokens_first)
                    drifts = {name: _drift(piece, changed, dense, name, call) if adds_drift else 0.0 for name in names}
                    outputs = {name: rows.lines(dense.outputs[name][call] + drifts[name]) for name in names}
                    counted = rows.counted
                    anchor.update(number, rows.lines(x)[counted], {name: y[counted] for name, y in outputs.items()})


class _PieceCapture(ExitStack):
    """Captures the activations at `paths` while a piece runs; the run ends after the last output of `names`."""

    def __init__(self, stream: Stream, piece: _Piece, paths: list[str], names: list[str]) -> None:
        super().__init__()
        self._stream, self._piece = stream, piece
        self.activations = self.enter_context(ActivationCapture(stream.lm.model, paths))
        self._until = self.enter_context(RunUntil([_module(stream, name) for name in names], returned=True))

    def __call__(self, number: int) -> None:
        self.activations.clear()
        with self._until.run():
            self._piece.run(self._stream, number)


def _drift(piece: _Piece, changed: ActivationCapture, dense: ActivationCapture, site: str, call: int) -> Tensor | float:
    """Residual stream of the dense model minus that of the compressed one at `site`; 0 if it does not write to it."""
    assert piece.block is not None
    # If an earlier step replaced a writer by two factors, the left factor computes its output.
    writer = next((part.writer for part in piece.sublayers if site in (part.writer, f"{part.writer}.left")), None)
    if writer is None:
        return 0.0
    dense_stream, compressed_stream = (
        residual_before(capture, piece.block, piece.sublayers, writer, piece.residual, call)
        for capture in (dense, changed)
    )
    return dense_stream - compressed_stream


def _module(stream: Stream, path: str) -> nn.Module:
    return stream.lm.model.get_submodule(path)
