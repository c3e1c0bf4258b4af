"""Reduce the dimension of attention heads, without adding a matrix product.

This is DRONE's form for attention. The mathematics is in `laconic.numerics.lowrank`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from laconic.calibrate import Calibration, InputCovariance, LayerStats, Mean, collect_stats
from laconic.compress.matrices import Keep
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel
from laconic.model.head_size import HeadedAttention, HeadMaps, find_attentions, resize_heads, zero_padding_maps
from laconic.numerics.lowrank import affine_moment, identity_components

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ShrinkHeads(Step):
    """Reduce the dimension of every attention head, with the least squared error of its scores and of its output.

    Args:
        keep: fraction of the head size kept, in (0, 1], the same in every attention.
        size: the new head size, in place of `keep`.
        multiple: sizes from `keep` are rounded down to a multiple of this, as fused attention kernels need multiples of
            8.

    Raises:
        UserError: both or neither of keep and size are given.

    Example:
        >>> ShrinkHeads(size=32).needs_data
        True
    """

    name = "shrink-heads"
    family = "width"
    example = "keep=0.75"
    size_parameters = ("keep", "size")

    keep: Keep | None = None
    size: Positive | None = None
    multiple: Positive = 8

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.size is None):
            raise UserError(
                "The step 'shrink-heads' needs one size: give either shrink-heads:keep=F with F in (0, 1], or "
                "shrink-heads:size=N."
            )

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        for attention in find_attentions(lm):
            self._new_size(attention)

    def dry_run(self, lm: LanguageModel) -> None:
        for attention in find_attentions(lm):
            size = self._new_size(attention)
            if size < attention.size:
                resize_heads(lm, attention, zero_padding_maps(attention, size))

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Collect the statistics, and make the projections of every attention smaller.

        Args:
            lm: the model, changed in place.
            data: calibration data.

        Returns:
            The bytes of every projection before and after.

        Raises:
            UserError: data is missing or empty, `size` is larger than a head, or the heads of `lm` cannot shrink.
        """
        if data is None:
            raise UserError("The step 'shrink-heads' needs calibration data; name a source of it.")
        self.check(lm)
        attentions = find_attentions(lm)
        before = _nbytes(lm)
        stats = collect_stats(
            lm, data, {InputCovariance, Mean}, [site for attention in attentions for site in attention.sites]
        )
        for attention in data.track(attentions, "Shrinking the heads"):
            size = self._new_size(attention)
            if size < attention.size:
                resize_heads(lm, attention, fit_head_maps(attention, stats, size))
        return Outcome(plan={}, before=before, after=_nbytes(lm))

    def _new_size(self, attention: HeadedAttention) -> int:
        if self.size is not None:
            if self.size > attention.size:
                limit = f"in [1, {attention.size}], the size of the heads of '{attention.name}'"
                raise must_be("size", limit, self.size)
            return self.size
        assert self.keep is not None
        size = int(self.keep * attention.size + 1e-9)
        return max(1, size - size % self.multiple if self.multiple <= size < attention.size else size)


@torch.no_grad()
def fit_head_maps(attention: HeadedAttention, stats: Mapping[str, LayerStats], size: int) -> HeadMaps:
    """Fit the maps to heads of `size` dimensions with the least squared error of attention scores and outputs.

    Args:
        attention: the attention to map.
        stats: statistics of its projections by layer name, with `InputCovariance` and `Mean`.
        size: the new head size, below the present one.

    Returns:
        One map for each head for queries, keys, values and the output projection.
    """
    d = attention.size
    moments = []
    for reader in attention.readers()[:2]:
        covariance, mean = stats[reader.site.name][InputCovariance].matrix, stats[reader.site.name][Mean].vector
        moments.append(_diagonal_blocks(affine_moment(reader.weight, reader.bias, covariance, mean), d))
    scores = [identity_components(C_q, C_k) for C_q, C_k in zip(*moments, strict=True)]
    columns = attention.output.weight().double().split(d, dim=1)
    contexts = _diagonal_blocks(stats[attention.output.name][InputCovariance].matrix, d)
    outputs = [identity_components(W_h.T @ W_h, C_z) for W_h, C_z in zip(columns, contexts, strict=True)]
    return HeadMaps(
        query=torch.stack([A[:, :size].T for A, _ in scores]),
        key=torch.stack([B[:size] for _, B in scores]),
        value=torch.stack([B[:size] for _, B in outputs]),
        output=torch.stack([A[:, :size] for A, _ in outputs]),
    )


def _diagonal_blocks(matrix: torch.Tensor, d: int) -> list[torch.Tensor]:
    return [rows[:, start : start + d] for start, rows in zip(range(0, len(matrix), d), matrix.split(d), strict=True)]


def _nbytes(lm: LanguageModel) -> dict[str, int]:
    return lm.stored_nbytes([site for attention in find_attentions(lm) for site in attention.sites])
