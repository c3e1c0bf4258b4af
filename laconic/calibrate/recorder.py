"""Hooks that update the statistics of linear layers while a model runs, without the rows of padding."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor, nn

from laconic.calibrate.experts import Counted, Keys, find_expert_recorders
from laconic.calibrate.layer_stats import LayerStats, gather
from laconic.calibrate.starved import StarvedExperts, shrink_starved
from laconic.calibrate.statistics import GradientStatistic, InputStatistic, Statistic
from laconic.calibrate.token_rows import TokenRows, batch_rows, expert_tokens
from laconic.model import Batch, InputTokens, LanguageModel, Site, token_masks


class Recorder(ExitStack):
    """A context manager that updates input statistics in forward passes and gradient statistics in backward passes.

    Layers that read the same tensor share their input statistics. The matrices of experts have recorders of their own
    (`laconic.calibrate.experts`). `start` must be called before each forward pass,
    because the masks of the batch say which tokens are padding.

    Args:
        lm: the model.
        sites: the layers.
        needs: the types of statistics to collect.
        shrink_starved: mix the statistics of experts that saw few tokens with those of their layer
            (`laconic.calibrate.starved`).
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        needs: Collection[type[Statistic]],
        *,
        shrink_starved: bool = True,
    ) -> None:
        super().__init__()
        self.starved: list[StarvedExperts] = []
        """The experts whose statistics `stats` has mixed with shared ones."""
        self._shrinks = shrink_starved
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
        readers = Counter(site.input for site in self.sites)
        for name, statistics in self._inputs.items():
            for statistic in statistics:
                statistic.readers = readers[name]
        stats = {
            site.name: LayerStats([*self._inputs[site.input], *self._gradients[site.name]], site.support)
            for site in self.sites
        }
        # The caller can then free statistics that it no longer needs.
        self._inputs, self._gradients = {}, {}
        if gathered:
            gather(stats)
        for layer in self.experts:
            if gathered:
                layer.gather()
            mixed = shrink_starved(layer) if self._shrinks else None
            self.starved += [] if mixed is None else [mixed]
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
        """Return which rows of a layer's input are padding in the present batch; see `batch_rows` for the arguments."""
        return batch_rows(self._task, self._batch, shape, reads, tokens_first)

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
            source, target = token_masks(self._task, self._batch)
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
        return expert_tokens(self._task, self._batch, number, reads)


def _update(statistics: list[GradientStatistic], x: Tensor | None, g: Tensor, rows: TokenRows) -> None:
    g = rows.lines(g) if rows.is_complete else rows.lines(g) * rows.counted[..., None]
    for statistic in statistics:
        statistic.update(x, g)
