"""The rung that changes nothing, which every ladder ends with."""

from jaxtyping import Bool, Float
from torch import Tensor

from laconic.formats import Sparse
from laconic.methods.base import Candidate


def as_it_is(
    weight: Float[Tensor, "out in"], support: Bool[Tensor, "out in"] | None, products: tuple[tuple[int, int], ...]
) -> Candidate:
    """The dense matrix, or one with the zeros that are there."""
    if support is None:
        nbytes, kept = weight.numel() * weight.element_size(), weight.numel()
    else:
        sparse = Sparse.of(weight, support)
        nbytes, kept = sparse.nbytes(), sparse.kept
    return Candidate(method=None, nbytes=nbytes, parameters=kept, products=products, loss=0.0)
