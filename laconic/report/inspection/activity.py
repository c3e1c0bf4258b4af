"""Measure activations on texts: outliers in the inputs of matrices, and the similarity of blocks and heads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laconic.calibrate import AbsMax, Calibration, InputStatistic, LayerStats, collect_stats
from laconic.calibrate.activation_capture import ActivationCapture
from laconic.calibrate.collation import to_device
from laconic.calibrate.token_rows import token_rows
from laconic.compress.depth.cuts import Cut, all_cuts
from laconic.compress.depth.hidden_states import stack_hidden_states
from laconic.errors import UserError
from laconic.model import Batch, Group, LanguageModel, Site, token_masks
from laconic.model.prunable_group import PrunableGroup, prunable_groups
from laconic.numerics.inspection import cka
from laconic.report.inspection.weights import kind_of, layer_labels

MAX_TOKENS = 512
"""The largest number of randomly drawn tokens for similarities."""
MIN_TOKENS = 32
"""The least number of tokens for similarities."""


@dataclass(frozen=True, kw_only=True)
class BlockSimilarity:
    """The influence of each block of a stack on the hidden states, and the similarity of the states between blocks.

    Args:
        stack: name of the stack; `blocks` if there is only one.
        labels: `input`, and the index of each block.
        influence: for each block, the mean of 1 − cosine between its input and output.
        similarity: debiased linear CKA between the hidden states of each pair of labels; None for too few tokens.
    """

    stack: str
    labels: tuple[str, ...]
    influence: tuple[float, ...]
    similarity: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True, kw_only=True)
class HeadSimilarity:
    """The similarity of the heads of one attention. Heads that share one of several keys count as one.

    Args:
        name: the path of the attention.
        layer: label of its block.
        similarity: debiased linear CKA between the outputs of each two heads.
    """

    name: str
    layer: str
    similarity: tuple[tuple[float, ...], ...]

    @property
    def nearest(self) -> tuple[float, ...]:
        """For each head, its similarity with the most similar other head."""
        return tuple(max((*row[:head], *row[head + 1 :]), default=0.0) for head, row in enumerate(self.similarity))


@dataclass
class CollectedStates:
    """Hidden states and head outputs of a sample of tokens.

    Args:
        changes: by stack, the sum of 1 − cosine over tokens for each block.
        counts: by stack, the number of tokens in these sums.
        hidden: by stack, sampled hidden states between the blocks, of each batch.
        outputs: by attention, sampled outputs of its heads, of each batch.
    """

    changes: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    hidden: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The least number of sampled tokens of a stack or an attention."""
        samples = [*(points[0] for points in self.hidden.values()), *self.outputs.values()]
        return min((sum(map(len, parts)) for parts in samples), default=0)

    def compare_blocks(self, stack: str) -> BlockSimilarity:
        """Compare the hidden states before and after each block of a stack."""
        points = [torch.cat(parts)[:MAX_TOKENS] for parts in self.hidden[stack]]
        influence = (self.changes[stack] / max(self.counts[stack], 1)).tolist()
        similarity = None if len(points[0]) < MIN_TOKENS else _rounded(cka(points))
        labels = ("input", *map(str, range(len(influence))))
        return BlockSimilarity(stack=stack, labels=labels, influence=tuple(influence), similarity=similarity)

    def compare_heads(self, heads: PrunableGroup, labels: Mapping[str, str]) -> HeadSimilarity | None:
        """Compare the outputs of the heads of an attention. Returns None for a single head or too few tokens.

        Args:
            heads: the heads of the attention.
            labels: labels of blocks by their path.
        """
        outputs = torch.cat(self.outputs[heads.writer.name])[:MAX_TOKENS]
        if len(outputs) < MIN_TOKENS or heads.count < 2:
            return None
        similarity = _rounded(cka(outputs.split(heads.size, dim=1)))
        return HeadSimilarity(name=heads.name, layer=labels[heads.writer.block or ""], similarity=similarity)


def _rounded(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in matrix.tolist())


@torch.no_grad()
def collect_states(
    lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], attentions: Sequence[PrunableGroup]
) -> CollectedStates:
    """Collect hidden states between blocks and outputs of heads for some tokens of every batch.

    Args:
        lm: the model.
        data: batches of texts.
        cuts: by stack, the places between its blocks.
        attentions: the heads to compare.
    """
    states = CollectedStates()
    generator = torch.Generator().manual_seed(data.seed)
    # 1.5 times the share of a batch, because other batches may have fewer tokens.
    share = -(-3 * MAX_TOKENS // (2 * len(data.batches)))

    def sample(rows: Tensor) -> Tensor:
        return torch.randperm(len(rows), generator=generator)[:share].to(rows.device)

    writers = [heads.writer for heads in attentions]
    for batch in data.track(data.batches, "Comparing blocks and heads"):
        inputs = to_device(batch, lm.device)
        with ActivationCapture(lm.model, [site.name for site in writers]) as capture:
            for stack, (cut_states, rows) in stack_hidden_states(lm, inputs, cuts).items():
                points = [rows.without_padding(point).float() for point in cut_states]
                cosines = [functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(points)]
                changes = torch.stack([(1 - cosine).sum().cpu() for cosine in cosines]).double()
                states.changes[stack] = states.changes.get(stack, 0) + changes
                states.counts[stack] = states.counts.get(stack, 0) + len(points[0])
                chosen = sample(points[0])
                for parts, point in zip(states.hidden.setdefault(stack, [[] for _ in points]), points, strict=True):
                    parts.append(point[chosen].cpu())
        for site in writers:
            for values in capture.inputs[site.name]:
                lines = _unpadded_rows(lm, site, inputs, values)
                states.outputs.setdefault(site.name, []).append(lines[sample(lines)].float().cpu())
    return states


def _unpadded_rows(lm: LanguageModel, site: Site, batch: Batch, values: Tensor) -> Tensor:
    """The rows of a matrix's input that are not padding."""
    place = site.places[0]
    rows = token_rows(values.shape[:-1], place.reads[0], place.tokens_first, *token_masks(lm.task, batch))
    return rows.without_padding(rows.lines(values))


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
        """E[(x − μ)⁴] / σ⁴: 3 for a Gaussian; None if x is constant."""
        m1, m2, m3, m4 = self._mean().tolist()
        variance = m2 - m1**2
        return None if variance <= 0 else (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2


@dataclass(frozen=True, kw_only=True)
class InputStats:
    """Outliers among the inputs of one matrix.

    Args:
        name: the path of the matrix.
        kind: the role of the matrix, like `query` or `ffn in`.
        layer: label of its block; None outside the blocks.
        largest: the largest max |x| over channels.
        median: the median of max |x| over channels.
        outliers: the number of channels whose max |x| is more than six times this median.
        channels: the number of channels.
        kurtosis: the kurtosis of the inputs; None if they are constant.
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
        """`largest` as a multiple of `median`; None if the median is 0."""
        return self.largest / self.median if self.median > 0 else None


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Measurements of activations on texts.

    Args:
        source: data source of the texts.
        rows: number of texts.
        tokens: number of tokens.
        inputs: outliers among the inputs of each matrix.
        blocks: similarity of hidden states, for each stack.
        heads: similarity of heads, for each attention.
        missing: sentences about what could not be measured.
    """

    source: str
    rows: int
    tokens: int
    inputs: tuple[InputStats, ...]
    blocks: tuple[BlockSimilarity, ...]
    heads: tuple[HeadSimilarity, ...]
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The measurements as JSON values."""
        inputs = [{**asdict(matrix), "ratio": matrix.ratio} for matrix in self.inputs]
        heads = [{**asdict(attention), "nearest": attention.nearest} for attention in self.heads]
        return {**asdict(self), "inputs": inputs, "heads": heads}


def measure_activity(lm: LanguageModel, data: Calibration, source: str) -> Activity:
    """Run a model over texts, and measure outliers and similarities.

    Args:
        lm: the model.
        data: batches of texts.
        source: name of their data source.

    Raises:
        UserError: there is no batch, or activations are not finite.
    """
    sites = [site for site in lm.sites(("all",)) if not site.is_lookup]
    stats = collect_stats(lm, data, {AbsMax, Powers}, sites)
    labels = layer_labels(lm)
    missing: list[str] = []
    try:
        cuts = all_cuts(lm, "blocks")
    except UserError as error:
        cuts = {}
        missing.append(f"Blocks were not compared: {error}")
    attentions = prunable_groups(lm, (Group.ATTENTION,))
    if not attentions:
        missing.append("Heads were not compared: they were not found, or their projections are compressed.")
    elif all(heads.count < 2 for heads in attentions):
        missing.append("Heads were not compared: each attention has a single one.")
    states = collect_states(lm, data, cuts, attentions)
    if states.rows < MIN_TOKENS and (cuts or attentions):
        missing.append(
            f"Blocks and heads were not compared on {states.rows} tokens, fewer than {MIN_TOKENS}; give longer texts."
        )
    similarities = (states.compare_heads(heads, labels) for heads in attentions)
    return Activity(
        source=source,
        rows=sum(len(batch["input_ids"]) for batch in data.batches),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in data.batches),
        inputs=tuple(_input_stats(site, stats[site.name], labels) for site in sites),
        blocks=tuple(states.compare_blocks(stack) for stack in cuts),
        heads=tuple(similarity for similarity in similarities if similarity is not None),
        missing=tuple(missing),
    )


def _input_stats(site: Site, stats: LayerStats, labels: Mapping[str, str]) -> InputStats:
    largest = stats[AbsMax].vector
    median = largest.median()
    return InputStats(
        name=site.name,
        kind=kind_of(site),
        layer=None if site.block is None else labels[site.block],
        largest=float(largest.max()),
        median=float(median),
        # The threshold of LLM.int8() is 6 where activations are of the order of 1.
        outliers=int((largest > 6 * median).sum()),
        channels=len(largest),
        kurtosis=stats[Powers].kurtosis,
    )
