"""The best values for codes that are given: least squares at the output of a layer.

Where a row of Ŵ is T c, with c (k, n) saying which of k values each weight has, ½ (w − Tc) C (w − Tc)^T has no gradient
in T at

    T (c C c^T) = w C c^T,

k equations for each row: the C of the inputs couples all weights, of which k-means looks at one by one. Rows that share
a table add up their equations, each as much as its outputs count.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

RIDGE = 1e-8
"""Holds a value that stands for no weight, or for inputs that were never active, where it was."""


def best_values(
    W: Float[Tensor, "out in"],
    places: Integer[Tensor, "out in"],
    V: Float[Tensor, "tables k"],
    C: Float[Tensor, "in in"],
    F: Float[Tensor, " out"],
) -> Float[Tensor, "tables k"]:
    """The values of least Σ_i F_i e_i C e_i^T, e_i the error of a row, in fp64.

    places: the number of the value of each weight; k where it is zero by choice.
    V:      the values that they have now: of each row, or of all together.
    """
    k = V.shape[1]
    WC = W.double() @ C
    systems = zip(F.tolist(), places.long(), WC, strict=True)
    if len(V) == 1:
        left, right = V.new_zeros(k, k).double(), V.new_zeros(k).double()
        for weight, here, target in systems:
            left += weight * _moment(here, C, k)
            right += weight * _total(here, target, k)
        return _solved(left, right, V[0].double())[None]
    rows = [
        _solved(_moment(here, C, k), _total(here, target, k), values)
        for (_, here, target), values in zip(systems, V.double(), strict=True)
    ]
    return torch.stack(rows)


def _solved(left: Tensor, right: Tensor, V: Tensor) -> Float[Tensor, " k"]:
    level = RIDGE * left.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny / RIDGE)
    left.diagonal().add_(level)
    return torch.linalg.solve(left, right + level * V)


def _moment(places: Integer[Tensor, " in"], C: Float[Tensor, "in in"], k: int) -> Float[Tensor, "k k"]:
    """c C c^T."""
    rows = C.new_zeros(k + 1, len(C)).index_add_(0, places, C)
    return C.new_zeros(k + 1, k + 1).index_add_(1, places, rows)[:k, :k]


def _total(places: Integer[Tensor, " in"], target: Float[Tensor, " in"], k: int) -> Float[Tensor, " k"]:
    """The numbers of each place added up."""
    return target.new_zeros(k + 1).index_add_(0, places, target)[:k]
