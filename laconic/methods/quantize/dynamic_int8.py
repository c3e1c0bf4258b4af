"""Int8 that runs: weights in int8 with a scale for each output, inputs rounded to 8 bits as they come.

Of Z. Yao et al., "ZeroQuant", NeurIPS 2022, arXiv 2206.01861: inputs get a range row by row ("token-wise", section
4.1), for one range of all rows is that of the largest outlier. The arithmetic is in `laconic.numerics.int8`, and which
kernel does it in `laconic.formats.int8`; the predicted loss is that of the rounded weights alone. A word embedding is
looked up and not multiplied by, so it is 8 bits on disk and in memory, and nothing else.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.formats import DynamicInt8
from laconic.methods.base import Candidate, Candidates, Method, digest_of
from laconic.methods.quantize.size import check_range
from laconic.methods.unchanged import as_it_is
from laconic.numerics.grid import Spacing, codes_of, fit_grid
from laconic.numerics.loss import quadratic_loss


@dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """Weights and inputs of 8 bits, never slower than dense; looks at no data."""

    name = "dynamic-int8"
    family = "quantization"
    paper = "Yao et al., NeurIPS 2022"
    needs = frozenset()
    keeps_support = True

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> DynamicInt8:
        """The matrix in int8, each row on the range that it spans.

        Raises:
            UserError: a weight is NaN, infinite or beyond what a scale of 16 bits can hold.
        """
        check_range(weight, self.name)
        grid = fit_grid(weight, Spacing(8, weight.shape[1], symmetric=True, clip=False), keep=known.support)
        # Codes of a grid count from its lowest value.
        codes = (codes_of(weight, grid).short() - 128).to(torch.int8)
        return DynamicInt8.of(codes, grid.scale[:, 0], weight.dtype, known.support)

    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> DynamicInt8:
        with torch.device("meta"):
            return DynamicInt8(shape, kept)

    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Int8":
        return self

    def unsized(self) -> "Int8":
        return self

    @property
    def has_size(self) -> bool:
        return True

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        def predict() -> tuple[Tensor, Tensor]:
            result = self.compress(weight, known)
            error = weight.double() - result.dense().double()
            loss = quadratic_loss(error, known[GradCovariance].matrix, known[InputCovariance].matrix)
            return torch.tensor([loss]).double(), torch.tensor([result.nbytes(), result.count])

        losses, sizes = known.once(f"loss of {self} of {digest_of(weight)}", predict)
        lookup = known[InputCovariance].matrix.ndim == 1
        products = () if lookup else ((weight.shape[0], weight.shape[1]),)
        nbytes, count = sizes.tolist()
        stays = as_it_is(weight, known.support, products)
        small = Candidate(method=self, nbytes=nbytes, parameters=count, products=products, loss=losses.item())
        return Candidates((small, stays) if nbytes < stays.nbytes else (stays,))
