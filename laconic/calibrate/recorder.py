"""Hooks that update the statistics of linear layers while a model runs, without the rows of padding."""

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional

from laconic.calibrate.experts import Counted, Keys, find_expert_recorders
from laconic.calibrate.layer_stats import LayerStats, gather
from laconic.calibrate.reservoir import token_keys
from laconic.calibrate.starved import describe_starved, shrink_starved
from laconic.calibrate.statistics import GradientStatistic, InputStatistic, Statistic
from laconic.errors import Notice
from laconic.model import Batch, InputTokens, LanguageModel, Site, token_masks

Mask = Bool[Tensor, "sequences tokens"]


@dataclass(frozen=True)
class TokenRows:
    """Marks the rows of a layer's input that are tokens; the others are padding.

    Args:
        counted: (sequences, tokens), True at tokens, False at padding.
        tokens_first: the layer's input has the shape (tokens, sequences, width).
    """

    counted: Mask
    tokens_first: bool

    def lines(self, x: Tensor) -> Tensor:
        """Reshape a layer's input or output to (sequences, tokens, width)."""
        x = x.transpose(0, 1) if self.tokens_first else x
        return x.reshape(*self.counted.shape, x.shape[-1])

    @cached_property
    def complete(self) -> bool:
        """True if there is no padding, so that `without_padding` need not copy."""
        return bool(self.counted.all())

    def without_padding(self, lines: Tensor) -> Tensor:
        """Return the rows without padding.

        Args:
            lines: (sequences, tokens, width), or token ids (sequences, tokens).

        Returns:
            (tokens, width), or token ids (tokens,).
        """
        return lines.flatten(0, 1) if self.complete else lines[self.counted]

    def tokens(self, x: Tensor) -> Tensor:
        """Reshape token ids to (sequences, tokens)."""
        return x.reshape(self.counted.shape)


def token_rows(shape: Sequence[int], reads: InputTokens, tokens_first: bool, source: Mask, target: Mask) -> TokenRows:
    """Find out which rows of a layer's input are padding.

    Args:
        shape: shape of the input without its last dimension.
        reads: whether the layer reads source tokens, target tokens, either, or vectors of its own (such as positions).
        tokens_first: the input has tokens in its first dimension.
        source: (sequences, tokens), True at source tokens that are no padding.
        target: the same for target tokens; equal to `source` unless the model is an encoder-decoder.
    """
    leading = (shape[1], shape[0], *shape[2:]) if tokens_first else tuple(shape)
    if reads is InputTokens.EITHER:
        reads = InputTokens.TARGET if _fits(leading, target) or not _fits(leading, source) else InputTokens.SOURCE
    mask = target if reads is InputTokens.TARGET else source
    return TokenRows(_every(leading, mask) if reads is InputTokens.OWN else _counted(leading, mask), tokens_first)


def _fits(shape: tuple[int, ...], mask: Mask) -> bool:
    return shape[:2] == tuple(mask.shape) or shape == (mask.numel(),)


def _counted(shape: tuple[int, ...], mask: Mask) -> Mask:
    if shape == (mask.numel(),):
        return mask
    if len(shape) == 1 or shape[0] != len(mask) or shape[1] < mask.shape[1]:
        return _every(shape, mask)
    # A model may pad its rows further, on the right, to a multiple of its attention window.
    mask = functional.pad(mask, (0, shape[1] - mask.shape[1]), value=False)
    return mask.reshape(*mask.shape, *(1 for _ in shape[2:])).expand(shape).reshape(len(mask), -1)


def _every(shape: tuple[int, ...], mask: Mask) -> Mask:
    """All rows count. Pooled vectors are sequences of one; an input shared by the batch (positions) is one sequence."""
    number = torch.Size(shape).numel()
    sequences = 1 if shape[0] == 1 or number % len(mask) else len(mask)
    return torch.ones(sequences, number // sequences, dtype=torch.bool, device=mask.device)


class Recorder(ExitStack):
    """A context manager that updates input statistics in forward passes and gradient statistics in backward passes.

    Layers that read the same tensor share their input statistics. The matrices of experts have recorders of their own
    (`laconic.calibrate.experts`). `start` must be called before each forward pass,
    because the masks of the batch say which tokens are padding.

    Args:
        lm: the model.
        sites: the layers.
        needs: the types of statistics to collect.
    """

    def __init__(self, lm: LanguageModel, sites: Sequence[Site], needs: Collection[type[Statistic]]) -> None:
        super().__init__()
        self.sites = [site for site in sites if site.stack is None]
        self._all_sites = sites
        self._batch: Batch = {}
        self._calls: Counter[nn.Module] = Counter()
        self._task = lm.task
        self._inputs: dict[str, list[InputStatistic]] = {}
        self._gradients: dict[str, list[GradientStatistic]] = {}
        for site in self.sites:
            out_features, in_features = site.shape
            self._gradients[site.name] = [
                kind.empty((out_features, in_features), lm.device)
                for kind in needs
                if issubclass(kind, GradientStatistic)
            ]
            if site.input not in self._inputs:
                self._inputs[site.input] = [
                    kind.empty(in_features, site.is_lookup, lm.device)
                    for kind in needs
                    if issubclass(kind, InputStatistic)
                ]
        of_experts = [site for site in sites if site.stack is not None]
        self.experts = find_expert_recorders(lm, of_experts, needs, self._find_expert_tokens)

    def __enter__(self) -> Self:
        reader = {site.input: site.name for site in reversed(self.sites)}
        for site in self.sites:
            # Encoder and decoder may call the same embedding.
            modules: dict[nn.Module, dict[InputTokens, None]] = {}
            for place in site.places:
                modules.setdefault(place.module, {}).update(dict.fromkeys(place.reads))
            for module, reads in modules.items():
                reads_first = reader[site.input] == site.name
                self.callback(self._hook(site, module, tuple(reads), reads_first).remove)
        for layer in self.experts:
            self.enter_context(layer)
        return self

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose calls update the statistics."""
        places = [place.module for site in self.sites for place in site.places]
        return [*places, *(module for layer in self.experts for module in layer.modules)]

    def start(self, batch: Batch) -> None:
        """Set the batch that the next forward pass runs on."""
        self._batch, self._calls = batch, Counter()

    def stats(self, gathered: bool = False) -> dict[str, LayerStats]:
        """The statistics that were collected, by layer name; to be called once, after the last batch.

        Args:
            gathered: combine the statistics of all processes, each of which ran a share of the batches.
        """
        stats = {
            site.name: LayerStats([*self._inputs[site.input], *self._gradients[site.name]], site.support)
            for site in self.sites
        }
        if gathered:
            gather(stats)
        for layer in self.experts:
            if gathered:
                layer.gather()
            shrink_starved(layer)
        if (sentence := describe_starved(self.experts)) is not None:
            warnings.warn(sentence, Notice, stacklevel=2)
        for layer in self.experts:
            stats |= layer.stats()
        return {site.name: stats[site.name] for site in self._all_sites}

    def count_predictions(self, number: int) -> None:
        """Add `number` to the number of predictions that the gradient statistics are divided by."""
        for statistics in self._gradients.values():
            for statistic in statistics:
                statistic.count += number
        for layer in self.experts:
            layer.count_predictions(number)

    def rows(self, shape: Sequence[int], reads: InputTokens, tokens_first: bool) -> TokenRows:
        """Return which rows of a layer's input are padding in the present batch; see `token_rows` for the arguments."""
        found = token_rows(shape, reads, tokens_first, *self._masks())
        texts = len(self._batch["input_ids"])
        # The choices of a row share one prediction, so that their tokens are one sequence.
        return replace(found, counted=found.counted.reshape(texts, -1)) if len(found.counted) > texts else found

    def _hook(
        self, site: Site, module: nn.Module, reads: tuple[InputTokens, ...], reads_first: bool
    ) -> torch.utils.hooks.RemovableHandle:
        """Register the hook of one module; `reads` has one entry for each of its calls in a pass."""
        gradients = self._gradients[site.name]
        # Autograd keeps no inputs of frozen layers, so keep them here only if a statistic needs them.
        keeps_inputs = any(statistic.reads_inputs for statistic in gradients)
        tokens_first = site.places[0].tokens_first

        def read(args: tuple[Tensor, ...]) -> tuple[TokenRows, Tensor] | None:
            shape = args[0].shape if site.is_lookup else args[0].shape[:-1]
            kind = reads[self._calls[module] % len(reads)]
            source, target = self._masks()
            if site.is_lookup and shape[-1] < (target if kind is InputTokens.TARGET else source).shape[-1]:
                # LED looks up the embedding of its own padding in a separate call.
                return None
            rows = self.rows(shape, kind, tokens_first)
            self._calls[module] += 1
            x = rows.tokens(args[0]) if site.is_lookup else rows.lines(args[0].detach())
            if reads_first:
                counted = rows.without_padding(x)
                for statistic in self._inputs[site.input]:
                    statistic.update(counted)
            return rows, x

        def on_call(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            read(args)

        def on_return(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs = read(args)
            if inputs is None or not torch.is_grad_enabled():
                return output
            rows, x = inputs
            stored = x if keeps_inputs else None
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            leaf.register_hook(lambda g: _update(gradients, stored, g.detach(), rows))
            # Some models scale their queries in place; a clone keeps the hook on the unscaled output.
            return leaf.clone()

        return module.register_forward_hook(on_return) if gradients else module.register_forward_pre_hook(on_call)

    def _find_expert_tokens(self, number: int, reads: InputTokens) -> tuple[Counted, Keys]:
        """Return which of the tokens that enter a layer of experts are no padding, and the keys of these tokens."""
        counted = self.rows((number,), reads, False).counted
        texts = [self._batch[name] for name in ("input_ids", "labels") if name in self._batch]
        ids = next((ids for ids in texts if ids.shape == counted.shape), None)
        if ids is None:
            ids = torch.arange(number, device=counted.device).view(counted.shape)
        return counted, token_keys(ids, counted)

    def _masks(self) -> tuple[Tensor, Tensor]:
        """Masks of the source and target tokens, (rows, tokens) each, True where there is no padding."""
        return token_masks(self._task, self._batch)


def _update(statistics: list[GradientStatistic], x: Tensor | None, g: Tensor, rows: TokenRows) -> None:
    g = rows.lines(g) if rows.complete else rows.lines(g) * rows.counted[..., None]
    for statistic in statistics:
        statistic.update(x, g)
