"""What a model does with a text: outliers among the inputs of its matrices, and blocks and heads that repeat others.

Outliers: the largest |x| of each channel against that of the median channel; what LLM.int8() (T. Dettmers et al.,
NeurIPS 2022, arXiv 2208.07339) and SmoothQuant (G. Xiao et al., ICML 2023, arXiv 2211.10438, section 3) find to make 8
bits too few. Blocks: Block Influence, 1 − E[cos(h_l, h_{l+1})] (X. Men et al., ShortGPT, arXiv 2403.03853, eq. 1), and
the similarity of what they leave (`laconic.numerics.similarity`); heads by that of what each gives to its output
projection. Padding counts nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate import AbsMax, Calibration, InputStatistic, survey
from laconic.calibrate.rows import rows_of
from laconic.calibrate.tap import Tap
from laconic.compress.depth.cuts import Cut, every_cut
from laconic.compress.depth.stream import streams
from laconic.errors import UserError
from laconic.model import Batch, Group, LanguageModel, Site, Task
from laconic.model.inner import Inner, inners_of
from laconic.numerics.similarity import cka
from laconic.report.inspection.weights import kind_of, layer_labels

TOKENS = 512
"""How many are compared with each other at most, drawn from all of them."""
FEWEST = 32
"""Tokens of which similarities can be said."""


class Powers(InputStatistic):
    """Σx, Σx², Σx³ and Σx⁴ over all channels, (4,)."""

    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "Powers":
        return cls(torch.zeros(4, dtype=torch.float64, device=device))

    def update(self, x: Tensor) -> None:
        self.count += x.numel()
        x = x.double()
        self._add(torch.stack([x.pow(power).sum() for power in (1, 2, 3, 4)]))

    @property
    def kurtosis(self) -> float | None:
        """E[(x − μ)⁴] / σ⁴: 3 for a Gaussian; None where x does not vary."""
        m1, m2, m3, m4 = self._mean().tolist()
        variance = m2 - m1**2
        return None if variance <= 0 else (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one matrix reads.

    largest:  max |x| of the channel where it is greatest; median: of the channel in the middle.
    outliers: channels whose max |x| is over six times the median's.
    """

    name: str
    kind: str
    layer: str | None
    largest: float
    median: float
    outliers: int
    channels: int
    kurtosis: float | None

    @property
    def ratio(self) -> float | None:
        return self.largest / self.median if self.median > 0 else None


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


@dataclass(frozen=True, kw_only=True)
class Activity:
    """source, rows, tokens: what the model was run on. missing: sentences about what could not be looked at."""

    source: str
    rows: int
    tokens: int
    inputs: tuple[Inputs, ...]
    blocks: tuple[Blocks, ...]
    heads: tuple[Heads, ...]
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        inputs = [{**asdict(one), "ratio": one.ratio} for one in self.inputs]
        heads = [{**asdict(one), "nearest": one.nearest} for one in self.heads]
        return {**asdict(self), "inputs": inputs, "heads": heads}


def activity(lm: LanguageModel, data: Calibration, source: str) -> Activity:
    """Run `lm` over the batches of `data`, drawn from `source`, and look.

    Raises:
        UserError: there is no batch, or activations are not finite.
    """
    sites = [site for site in lm.sites(("all", "*")) if not site.is_lookup]
    known = survey(lm, data, {AbsMax, Powers}, sites)
    labels = layer_labels(lm)
    inputs = tuple(_inputs(site, known[site.name][AbsMax].vector, known[site.name][Powers].kurtosis, labels)
                   for site in sites)  # fmt: skip
    missing: list[str] = []
    try:
        cuts = every_cut(lm, "blocks")
    except UserError as error:
        cuts = {}
        missing.append(f"Blocks were not compared: {error}")
    inners = inners_of(lm, (Group.ATTENTION,))
    if not inners:
        missing.append("Heads were not compared: it is not known where they are, or their projections are compressed.")
    elif all(inner.count < 2 for inner in inners):
        missing.append("Heads were not compared: each attention has a single one.")
    collected = _run(lm, data, cuts, inners)
    if collected.rows < FEWEST:
        missing.append(f"Blocks and heads were not compared on {collected.rows} tokens; give longer texts.")
    return Activity(
        source=source,
        rows=sum(len(batch["input_ids"]) for batch in data.batches),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in data.batches),
        inputs=inputs,
        blocks=tuple(collected.blocks(stack) for stack in cuts),
        heads=tuple(found for inner in inners if (found := collected.heads(inner, labels)) is not None),
        missing=tuple(missing),
    )


def _inputs(site: Site, largest: Tensor, kurtosis: float | None, labels: Mapping[str, str]) -> Inputs:
    median = largest.median()
    return Inputs(
        name=site.name,
        kind=kind_of(site),
        layer=None if site.block is None else labels[site.block],
        largest=float(largest.max()),
        median=float(median),
        # The threshold of LLM.int8() is 6 where activations are of the order of 1.
        outliers=int((largest > 6 * median).sum()),
        channels=len(largest),
        kurtosis=kurtosis,
    )


@dataclass
class _Collected:
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

    def heads(self, inner: Inner, labels: Mapping[str, str]) -> Heads | None:
        outputs = torch.cat(self.outputs[inner.writer.name])[:TOKENS]
        if len(outputs) < FEWEST or inner.count < 2:
            return None
        similarity = cka(outputs.split(inner.size, dim=1))
        return Heads(name=inner.name, layer=labels[inner.writer.block or ""], similarity=_rounded(similarity))


def _rounded(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in matrix.tolist())


@torch.no_grad()
def _run(lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], inners: Sequence[Inner]) -> _Collected:
    """What passes between the blocks and out of the heads, of some tokens of every batch."""
    found = _Collected()
    generator = torch.Generator().manual_seed(data.seed)
    # Half as many again, for batches that have fewer tokens than their share.
    share = -(-3 * TOKENS // (2 * len(data.batches)))
    writers = [inner.writer for inner in inners]
    for batch in data.track(data.batches, "Comparing blocks and heads"):
        inputs = {name: tensor.to(lm.device) for name, tensor in batch.items()}
        with Tap(lm.model, [site.name for site in writers]) as tap:
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
