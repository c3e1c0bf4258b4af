"""Hooks that feed the statistics of a set of sites while the model runs."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Self

import torch
from torch import Tensor, nn

from laconic.calibrate.known import Known
from laconic.calibrate.statistics import GradientStatistic, InputStatistic, Statistic
from laconic.model import Batch, LanguageModel, Site, Task


class Recorder(ExitStack):
    """Within the context every forward pass updates the input statistics, every backward pass the gradients'.

    Sites that read the same tensor share one `InputStatistic`. `batch` must be set before each forward pass: its
    masks say which rows are padding.
    """

    def __init__(self, lm: LanguageModel, sites: Sequence[Site], needs: Collection[type[Statistic]]) -> None:
        super().__init__()
        self.sites = sites
        self.batch: Batch = {}
        self._seq2seq = lm.task is Task.SEQ2SEQ
        self._inputs: dict[str, list[InputStatistic]] = {}
        self._gradients: dict[str, list[GradientStatistic]] = {}
        for site in sites:
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

    def __enter__(self) -> Self:
        reader = {site.input: site.name for site in reversed(self.sites)}
        for site in self.sites:
            modules: dict[nn.Module, dict[str, None]] = {}
            for place in site.places:
                modules.setdefault(place.module, {})[place.reads] = None
            for module, reads in modules.items():
                reads_first = reader[site.input] == site.name
                self.callback(self._hook(site, module, cycle(reads), reads_first).remove)
        return self

    def known(self) -> dict[str, Known]:
        """What was collected, by site name."""
        return {site.name: Known([*self._inputs[site.input], *self._gradients[site.name]]) for site in self.sites}

    def count_predictions(self, number: int) -> None:
        """Tell the gradient statistics how many predictions the batch's gradients came from."""
        for statistics in self._gradients.values():
            for statistic in statistics:
                statistic.count += number

    def _hook(
        self, site: Site, module: nn.Module, turns: Iterator[str], reads_first: bool
    ) -> torch.utils.hooks.RemovableHandle:
        """`turns` says whose tokens each call of `module` has: one table may serve encoder and decoder in turn."""
        gradients = self._gradients[site.name]
        # The graph of frozen weights keeps no inputs; neither does this, unless they are asked for.
        keeps_inputs = any(statistic.reads_inputs for statistic in gradients)

        def on_forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            mask = self.mask(x if site.is_lookup else x[..., 0], next(turns))
            if reads_first:
                counted = _rows(x, mask, site.is_lookup)
                for statistic in self._inputs[site.input]:
                    statistic.update(counted)
            if gradients and torch.is_grad_enabled():
                if not output.requires_grad:
                    output.requires_grad_()
                kept, rows = x if keeps_inputs else None, len(self.batch["input_ids"])
                output.register_hook(lambda g: _update(gradients, kept, g.detach(), mask, rows))

        return module.register_forward_hook(on_forward)

    def mask(self, positions: Tensor, reads: str) -> Tensor:
        """True where a row counts, in the shape of `positions`; a pooled vector per row of the batch always does."""
        if reads == "target" and self._seq2seq:
            mask = self.batch["labels"] != -100
        else:
            mask = self.batch["attention_mask"].bool()
        if mask.numel() != positions.numel():
            return torch.ones_like(positions, dtype=torch.bool)
        return mask.reshape(positions.shape)


def _rows(x: Tensor, mask: Tensor, lookup: bool) -> Tensor:
    return x[mask] if lookup else x[mask].reshape(-1, x.shape[-1])


def _update(statistics: list[GradientStatistic], x: Tensor | None, g: Tensor, mask: Tensor, rows: int) -> None:
    # One line a row of the batch, whatever the model folds them into; a pooled vector is a sequence of one, and what
    # is no multiple of the batch (embeddings of relative positions) belongs to no row.
    sequences = rows if mask.numel() % rows == 0 else 1
    g = (g * mask[..., None]).reshape(sequences, -1, g.shape[-1])
    if x is not None:
        x = x.reshape(g.shape[:2]) if not x.is_floating_point() else x.reshape(*g.shape[:2], x.shape[-1])
    for statistic in statistics:
        statistic.update(x, g)
