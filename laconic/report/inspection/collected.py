"""What passes between the blocks and out of the heads of a model, drawn from a text, and how alike it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import ActivationCapture
from laconic.calibrate.recorder import rows_of
from laconic.compress.depth.cuts import Cut
from laconic.compress.depth.importance import streams
from laconic.model import Batch, LanguageModel, Site, Task
from laconic.model.prunable_group import PrunableGroup
from laconic.numerics.inspection import cka

TOKENS = 512
"""How many are compared with each other at most, drawn from all of them."""
FEWEST = 32
"""Tokens of which similarities can be said."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """One stack: the influence of each block, and the similarity of what enters it and what each block leaves."""

    stack: str
    labels: tuple[str, ...]
    influence: tuple[float, ...]
    similarity: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One attention: how alike its heads are; such as share their keys count as one."""

    name: str
    layer: str
    similarity: tuple[tuple[float, ...], ...]

    @property
    def nearest(self) -> tuple[float, ...]:
        """Of each head the similarity of the other that is most like it."""
        rows = enumerate(self.similarity)
        return tuple(max((value for at, value in enumerate(row) if at != head), default=0.0) for head, row in rows)


@dataclass
class Collected:
    """By stack the sum of 1 − cosine of each block and the tokens it is over; by stack and attention, tokens drawn."""

    turned: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    hidden: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        held = [sum(map(len, points[0])) for points in self.hidden.values()]
        return min([*held, *(sum(map(len, parts)) for parts in self.outputs.values())], default=0)

    def blocks(self, stack: str) -> Blocks:
        points = [torch.cat(parts)[:TOKENS] for parts in self.hidden[stack]]
        influence = (self.turned[stack] / max(self.counts[stack], 1)).tolist()
        similarity = None if len(points[0]) < FEWEST else _rounded(cka(points))
        labels = ("input", *(str(number) for number in range(len(influence))))
        return Blocks(stack=stack, labels=labels, influence=tuple(influence), similarity=similarity)

    def heads(self, inner: PrunableGroup, labels: Mapping[str, str]) -> Heads | None:
        outputs = torch.cat(self.outputs[inner.writer.name])[:TOKENS]
        if len(outputs) < FEWEST or inner.count < 2:
            return None
        similarity = cka(outputs.split(inner.size, dim=1))
        return Heads(name=inner.name, layer=labels[inner.writer.block or ""], similarity=_rounded(similarity))


def _rounded(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in matrix.tolist())


@torch.no_grad()
def collect(
    lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], inners: Sequence[PrunableGroup]
) -> Collected:
    """What passes between the blocks and out of the heads, of some tokens of every batch."""
    found = Collected()
    generator = torch.Generator().manual_seed(data.seed)
    # Half as many again, for batches that have fewer tokens than their share.
    share = -(-3 * TOKENS // (2 * len(data.batches)))
    writers = [inner.writer for inner in inners]
    for batch in data.track(data.batches, "Comparing blocks and heads"):
        inputs = {name: tensor.to(lm.device) for name, tensor in batch.items()}
        with ActivationCapture(lm.model, [site.name for site in writers]) as tap:
            for stack, (points, rows) in streams(lm, inputs, cuts).items():
                states = [rows.of(point).float() for point in points]
                pairs = pairwise(states)
                turns = torch.stack([(1 - functional.cosine_similarity(a, b, dim=-1)).sum().cpu() for a, b in pairs])
                found.turned[stack] = found.turned.get(stack, torch.zeros(())) + turns.double()
                found.counts[stack] = found.counts.get(stack, 0) + len(states[0])
                chosen = torch.randperm(len(states[0]), generator=generator)[:share]
                held = found.hidden.setdefault(stack, [[] for _ in states])
                for parts, state in zip(held, states, strict=True):
                    parts.append(state[chosen.to(state.device)].cpu())
        for site in writers:
            for read in tap.inputs[site.name]:
                lines = _lines(lm, site, inputs, read)
                chosen = torch.randperm(len(lines), generator=generator)[:share]
                found.outputs.setdefault(site.name, []).append(lines[chosen.to(lines.device)].float().cpu())
    return found


def _lines(lm: LanguageModel, site: Site, batch: Batch, read: Tensor) -> Tensor:
    """The rows of a matrix's input that are no padding."""
    source = batch["attention_mask"].bool()
    target = batch["labels"] != -100 if lm.task is Task.SEQ2SEQ else source
    place = site.places[0]
    rows = rows_of(read.shape[:-1], place.reads[0], place.tokens_first, source, target)
    return rows.of(rows.lines(read))
