"""One statistic of the matrices of all experts of a layer, summed over the tokens that the router sends to each.

A token whose output the router weights by w counts w² in the sums of the inputs (`laconic.numerics.grouped`), and their
`count` is Σ w², so C = Σ w² x x^T / Σ w². Gradients at the outputs of an expert have the factor w already.

The statistics of `laconic.calibrate.statistics` have sums of their own for a whole stack. The statistic of a plug-in is
updated with the tokens of one expert after another, unweighted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laconic import processes
from laconic.calibrate.statistics import (
    AbsMax,
    AbsMean,
    Fisher,
    GradCovariance,
    GradientStatistic,
    InputCovariance,
    InputStatistic,
    Mean,
    Statistic,
    precise,
)
from laconic.formats import Routing
from laconic.numerics.grouped import (
    add_grams,
    add_squared_products,
    add_sums,
    expert_rows,
    raise_maxima,
    sum_squares,
)


@dataclass(frozen=True)
class RoutedTokens:
    """The pairs of a token and an expert of one call of a layer, without those of padding, sorted by expert.

    Args:
        kept: (pairs,), True at the pairs of the call that are none of padding; None if all are kept.
        weights: (kept pairs,), the router's weights in fp32, or in fp64.
        sequences: (kept pairs,), the number of the sequence of the batch that the token belongs to.
        ends: (experts,), the number of kept pairs of each expert and all experts before it.
    """

    kept: Bool[Tensor, " pairs"] | None
    weights: Float[Tensor, " kept"]
    sequences: Int[Tensor, " kept"]
    ends: Int[Tensor, " experts"]

    @classmethod
    def of(cls, routing: Routing, counted: Bool[Tensor, "sequences tokens"]) -> "RoutedTokens":
        """Leave out the pairs of padding.

        Args:
            routing: the pairs of all tokens.
            counted: True at tokens, False at padding.
        """
        sequences, weights = routing.tokens // counted.shape[1], precise(routing.weights.detach())
        if counted.all():
            return cls(None, weights, sequences, routing.ends)
        kept = counted.flatten()[routing.tokens]
        cumulative = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.cumsum(0)])
        return cls(kept, weights[kept], sequences[kept], cumulative[routing.ends.long()])

    def without_padding(self, pairs: Float[Tensor, "pairs width"]) -> Float[Tensor, "kept width"]:
        """The kept rows of the input, or of the gradients at the output, of a stack; in fp32, or in fp64."""
        return precise(pairs if self.kept is None else pairs[self.kept])

    @property
    def rows(self) -> Int[Tensor, " experts"]:
        """(experts,), the number of tokens of each expert."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)).long()


class StackStatistic:
    """One statistic of the matrices of all experts.

    Args:
        kind: its type.
        totals: (experts, …), the `total` of each expert.
        counts: (experts,), the `count` of each expert, in fp64.
    """

    def __init__(self, kind: type[Statistic], totals: Tensor, counts: Float[Tensor, " experts"]) -> None:
        self.kind, self.totals, self.counts = kind, totals, counts

    @classmethod
    def empty(
        cls, kind: type[Statistic], experts: int, shape: tuple[int, int], device: torch.device
    ) -> "StackStatistic":
        """The statistic before any token.

        Args:
            kind: its type.
            experts: the number of matrices.
            shape: (out, in) of each.
            device: the device of the sums.
        """
        if issubclass(kind, InputStatistic):
            first = kind.empty(shape[1], False, device)
        else:
            assert issubclass(kind, GradientStatistic)
            first = kind.empty(shape, device)
        totals = first.total.new_zeros(experts, *first.total.shape)
        return cls(kind, totals, torch.zeros(experts, dtype=torch.float64, device=device))

    def part(self, expert: int) -> Statistic:
        """The statistic of one expert, on the same tensor."""
        return self.kind.from_total(self.totals[expert], self.counts[expert].item())

    def update_inputs(self, X: Float[Tensor, "kept in"], tokens: RoutedTokens) -> None:
        """Add the inputs of one call, for a statistic of the inputs."""
        add = _INPUT_SUMS.get(self.kind)
        if add is None:
            for expert, rows in expert_rows(tokens.ends):
                self._update_part(expert, lambda part, x=X[rows]: cast(InputStatistic, part).update(x))
            return
        add(self.totals, X, tokens)
        self.counts += sum_squares(tokens.weights, tokens.ends)

    def update_gradients(
        self, X: Float[Tensor, "kept in"] | None, G: Float[Tensor, "kept out"], tokens: RoutedTokens
    ) -> None:
        """Add one call, for a statistic of the gradients; X is None unless the statistic reads inputs."""
        if self.kind is GradCovariance:
            # Moments that are too large are diagonal.
            if self.totals.ndim == 2:
                add_sums(self.totals, G.square(), torch.ones_like(G[:, 0]), tokens.ends)
            else:
                add_grams(self.totals, G, None, tokens.ends)
        elif self.kind is Fisher:
            assert X is not None
            add_squared_products(self.totals, G, X, tokens.sequences, tokens.ends)
        else:
            for expert, rows in expert_rows(tokens.ends):
                for sequence in tokens.sequences[rows].unique():
                    own = tokens.sequences[rows] == sequence
                    x, g = None if X is None else X[rows][own], G[rows][own]
                    self._update_part(expert, lambda part, x=x, g=g: cast(GradientStatistic, part).update(x, g))

    def gather(self) -> None:
        """Combine the statistic of all processes, in place."""
        whole = self.kind.from_total(self.totals, 0)
        whole.gather()
        self.totals, self.counts = whole.total, processes.all_reduce_sum(self.counts)

    def _update_part(self, expert: int, update: Callable[[Statistic], None]) -> None:
        part = self.part(expert)
        update(part)
        self.totals[expert], self.counts[expert] = part.total, part.count


_INPUT_SUMS: dict[type[Statistic], Callable[[Tensor, Tensor, RoutedTokens], None]] = {
    InputCovariance: lambda totals, X, tokens: add_grams(totals, X, tokens.weights, tokens.ends),
    Mean: lambda totals, X, tokens: add_sums(totals, X, tokens.weights, tokens.ends),
    AbsMean: lambda totals, X, tokens: add_sums(totals, X.abs(), tokens.weights, tokens.ends),
    AbsMax: lambda totals, X, tokens: raise_maxima(totals, X, tokens.ends),
}
"""For each statistic of the inputs, the function that adds the rows of one call to the totals of all experts."""
