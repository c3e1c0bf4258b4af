"""How long a product of a batch of rows with a matrix takes on this machine: a small table, measured once and kept.

A time is that of a linear layer with its call, so two thin factors cost two calls. Along the rank the table is coarse
and read piecewise linearly. Products are timed in turn, round by round, so that a load on the machine hits all alike,
and relative to a reference product, so that what is measured on another day fits. The time is the lower quartile of the
rounds: a load only adds to it.
"""

import hashlib
import json
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import torch
from torch import nn

from laconic.cache import cache_folder, processor
from laconic.calibrate.passes import machine, now, seconds_of

WARM_UP = 2
ROUNDS = 25
FEWEST_ROUNDS = 5
PATIENCE = 30.0
"""Seconds after which a large table is measured no more, once every product has run often enough."""

GRID = tuple(sorted({power * part // 4 for power in (2**i for i in range(3, 17)) for part in (4, 6)}))
"""Where the table is exact along the smaller side of a matrix: 8, 12, 16, 24, 32 and so on; linear in between."""


class Product(NamedTuple):
    """`rows` of width `in_features` times a matrix (out, in)."""

    rows: int
    out_features: int
    in_features: int


REFERENCE = Product(1024, 512, 512)
Measure = Callable[[Sequence[Product]], list[list[float]]]
"""Seconds of some products in turn, round by round."""


class ProductTimes:
    """Nanoseconds by product, kept in `file`. A file that cannot be read is measured anew; one that cannot be written
    is not kept."""

    def __init__(self, measure: Measure, file: Path, machine: Mapping[str, Any]) -> None:
        self._measure = measure
        self._file = file
        self._machine = machine
        self._known = _read(file)

    def prepare(self, products: Iterable[Product]) -> None:
        """Measure those of `products` that are not in the table, all together."""
        asked = set(products) - self._known.keys()
        if not asked:
            return
        missing = sorted(asked - {REFERENCE})
        reference, *others = [
            _lower_quartile(times) for times in zip(*self._measure([REFERENCE, *missing]), strict=True)
        ]
        unit = self._known.setdefault(REFERENCE, round(1e9 * reference)) / reference
        self._known |= {product: max(1, round(unit * time)) for product, time in zip(missing, others, strict=True)}
        self._keep()

    def _keep(self) -> None:
        names = {"x".join(map(str, product)): time for product, time in sorted(self._known.items())}
        partial = self._file.with_suffix(f".{secrets.token_hex(4)}")
        # A folder that cannot be written to costs the measurement again, and nothing else.
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps({"machine": self._machine, "nanoseconds": names}, indent=1) + "\n")
                partial.replace(self._file)
            finally:
                partial.unlink(missing_ok=True)

    def exact(self, product: Product) -> int:
        """Nanoseconds of a product that was prepared."""
        return self._known[product]

    def between(self, product: Product) -> int:
        """Nanoseconds of a product whose `knots` were prepared, by linear interpolation along the smaller side."""
        low, high = ends = knots(product)
        if low == high:
            return self._known[low]
        (start, stop), here = (min(end[1:]) for end in ends), min(product[1:])
        along = (here - start) / (stop - start)
        return round((1 - along) * self._known[low] + along * self._known[high])


def knots(product: Product) -> tuple[Product, Product]:
    """The products in the table that `product` lies between; twice itself where it is one of them."""
    side = min(product.out_features, product.in_features)
    at = bisect_left(GRID, side)
    low, high = (GRID[at], GRID[at]) if GRID[at] == side else (GRID[max(at - 1, 0)], GRID[at])
    # The smaller side is the rank where there is one, as ranks that save anything are below both sides of the matrix.
    narrow_out = product.out_features <= product.in_features
    ends = [product._replace(**{"out_features" if narrow_out else "in_features": size}) for size in (low, high)]
    return ends[0], ends[1]


def times_on(device: torch.device) -> ProductTimes:
    """The table of this machine, with its present number of threads. Models compute in float32."""
    depends_on = {"processor": processor(), **machine(device), "dtype": "float32"}
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return ProductTimes(lambda products: timed(products, device), cache_folder() / f"products-{name}.json", depends_on)


@torch.inference_mode()
def timed(products: Sequence[Product], device: torch.device) -> list[list[float]]:
    """Seconds of each product, one list a round, after rounds to warm up."""
    layers = {product: nn.Linear(product.in_features, product.out_features, device=device) for product in products}
    inputs = {(p.rows, p.in_features): torch.randn(p.rows, p.in_features, device=device) for p in products}

    def run() -> list[float]:
        return [
            seconds_of(lambda layer=layer, x=inputs[product.rows, product.in_features]: layer(x), device)
            for product, layer in layers.items()
        ]

    for _ in range(WARM_UP):
        run()
    rounds: list[list[float]] = []
    start = now(device)
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < ROUNDS and now(device) - start < PATIENCE):
        rounds.append(run())
    return rounds


def _lower_quartile(times: Sequence[float]) -> float:
    return quantiles(times, n=4, method="inclusive")[0]


def _read(file: Path) -> dict[Product, int]:
    try:
        stored = json.loads(file.read_text())["nanoseconds"]
        return {Product(*map(int, name.split("x"))): int(time) for name, time in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
