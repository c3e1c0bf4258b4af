"""Means of means: over the rows of a group, over the groups of a larger one, and so on, each counting the same.

The mean of means over a table is a weighted mean over its rows. Resampled rows keep their weights, so that an interval
does not hang on which small group a resample happens to miss (the ratio estimator of Hájek 1971).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.corpus import Corpus
from laconic.evaluate.intervals import Among, Table

Figure = Callable[[Table], Float[np.ndarray, " rows"]]
"""What each row of a table contributes."""


def shares(groups: Sequence[str]) -> Float[Tensor, " rows"]:
    """The weight of each row in the mean of means over `groups`, names of levels parted by slashes; they sum to 1."""
    paths = [tuple(group.split("/")) for group in groups]
    members: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in set(paths):
        for depth, name in enumerate(path):
            members[path[:depth]].add(name)
    rows = Counter(paths)
    shares = {path: 1 / (rows[path] * prod(len(members[path[:at]]) for at in range(len(path)))) for path in rows}
    return torch.tensor([shares[path] for path in paths], dtype=torch.float64)


def weighted(figure: Figure, weight: int, only: tuple[int, int] | None = None) -> Among:
    """The mean of `figure` by the weights in column `weight`, over the rows whose column `only[0]` is `only[1]`.

    0 where no such row was drawn.
    """

    def metric(table: Table) -> float:
        weights = weights_of(table)
        total = weights.sum()
        return float(weights @ figure(table) / total) if total else 0.0

    def weights_of(table: Table) -> Float[np.ndarray, " rows"]:
        return table[:, weight] if only is None else table[:, weight] * (table[:, only[0]] == only[1])

    return Among(metric, lambda table: weights_of(table) > 0)


def evenly(corpus: Corpus, rows: int | None) -> Corpus:
    """`rows` rows, as many of each group as of the others as far as they have them, the first ones of each; all for
    None. They stay in the order of the corpus."""
    if rows is None:
        return corpus
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for at, example in enumerate(corpus.examples):
        turns.append((seen[example.group], at))
        seen[example.group] += 1
    chosen = sorted(at for _, at in sorted(turns)[:rows])
    return replace(corpus, examples=tuple(corpus.examples[at] for at in chosen))
