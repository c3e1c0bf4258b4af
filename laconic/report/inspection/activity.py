"""What a model does with a text: outliers among the inputs of its matrices, and blocks and heads that repeat others.

Outliers: the largest |x| of each channel against that of the median channel; what LLM.int8() (T. Dettmers et al.,
NeurIPS 2022, arXiv 2208.07339) and SmoothQuant (G. Xiao et al., ICML 2023, arXiv 2211.10438, section 3) find to make 8
bits too few. Blocks: Block Influence, 1 − E[cos(h_l, h_{l+1})] (X. Men et al., ShortGPT, arXiv 2403.03853, eq. 1), and
the similarity of what they leave (`laconic.numerics.inspection`); heads by that of what each gives to its output
projection. Padding counts nowhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate import AbsMax, Calibration, InputStatistic, collect_stats
from laconic.compress.depth.cuts import every_cut
from laconic.errors import UserError
from laconic.model import Group, LanguageModel, Site
from laconic.model.prunable_group import prunable_groups
from laconic.report.inspection.collected import FEWEST, Blocks, Heads, collect
from laconic.report.inspection.weights import kind_of, layer_labels


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
    sites = [site for site in lm.sites(("all",)) if not site.is_lookup]
    known = collect_stats(lm, data, {AbsMax, Powers}, sites)
    labels = layer_labels(lm)
    inputs = tuple(_inputs(site, known[site.name][AbsMax].vector, known[site.name][Powers].kurtosis, labels)
                   for site in sites)  # fmt: skip
    missing: list[str] = []
    try:
        cuts = every_cut(lm, "blocks")
    except UserError as error:
        cuts = {}
        missing.append(f"Blocks were not compared: {error}")
    inners = prunable_groups(lm, (Group.ATTENTION,))
    if not inners:
        missing.append("Heads were not compared: it is not known where they are, or their projections are compressed.")
    elif all(inner.count < 2 for inner in inners):
        missing.append("Heads were not compared: each attention has a single one.")
    collected = collect(lm, data, cuts, inners)
    if collected.rows < FEWEST and (cuts or inners):
        missing.append(
            f"Blocks and heads were not compared on {collected.rows} tokens, fewer than {FEWEST}; give longer texts."
        )
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
