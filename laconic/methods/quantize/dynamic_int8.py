"""Dynamic int8: y ≈ s_i s_x Σ_j c_ij c_j with int8 codes c of the weights, and of the inputs at run time.

Each output has a scale s_i, each row of inputs a scale s_x (Z. Yao et al., "ZeroQuant", NeurIPS 2022, section 4.1).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import DynamicInt8
from laconic.methods.base import Candidates, Method
from laconic.methods.prediction import predict_candidates
from laconic.methods.quantize.base import check_range
from laconic.numerics.grid import GridSpec, fit_grid, quantize


@dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """Weights and inputs of 8 bits, multiplied as integers where that is faster; reads no data.

    Each row of inputs gets a range of its own ("token-wise"), because one range for all rows is that of the largest
    outlier. `laconic.formats.int8` has the arithmetic and chooses the fastest kernel, so the layer is never slower than
    a dense one. The predicted loss is only that of the rounded weights. A word embedding is looked up, not multiplied:
    it is only stored in 8 bits.

    Reference:
        Z. Yao et al., "ZeroQuant", NeurIPS 2022, arXiv 2206.01861, section 4.1.

    Example:
        >>> layer = Int8().compress(torch.tensor([[0.5, -1.0], [127.0, 3.0]]), LayerStats())
        >>> layer.nbytes(), layer.dense().round(decimals=2).tolist()
        (8, [[0.5, -1.0], [127.0, 3.0]])
    """

    name = "dynamic-int8"
    family = "quantization"
    paper = "Yao et al., NeurIPS 2022"
    needs = frozenset()
    keeps_support = True

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> DynamicInt8:
        """The matrix in int8, each row scaled to its largest weight.

        Raises:
            UserError: a weight is NaN, infinite or larger than a scale of 16 bits can be.
        """
        check_range(weight, self.name)
        grid = fit_grid(weight, GridSpec(8, weight.shape[1], symmetric=True, clip=False), keep=stats.support)
        # Codes of a grid start at 0.
        codes = (quantize(weight, grid).short() - 128).to(torch.int8)
        return DynamicInt8.from_codes(codes, grid.scale[:, 0], weight.dtype, stats.support)

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> DynamicInt8:
        with torch.device("meta"):
            return DynamicInt8(shape, kept)

    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Int8":
        return self

    def without_size(self) -> "Int8":
        return self

    @property
    def has_size(self) -> bool:
        return True

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        return predict_candidates(weight, stats, [self], lambda: [self.compress(weight, stats)])
