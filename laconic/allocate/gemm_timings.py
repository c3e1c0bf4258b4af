"""The time of matrix products on this machine, measured once and kept in a file.

Each time is that of one call of an `nn.Linear`, so a layer of two factors takes two calls. The smaller side of a
product (the rank of a factor) is measured at a few sizes and interpolated linearly between them. All products are timed
once per round, so that other load on the machine affects them equally. Times are scaled by that of a reference product,
so that times from different runs are comparable. The result is the lower quartile over the rounds, because other load
only adds time.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import torch
from torch import nn

from laconic.cache import machine_file, read_measurements, write_measurements
from laconic.calibrate.passes import describe_machine, read_clock, time_call
from laconic.system import processor

WARM_UP = 2
ROUNDS = 25
MIN_ROUNDS = 5
MAX_SECONDS = 30.0
"""Seconds after which no further round begins, once there are `MIN_ROUNDS`."""

GRID = tuple(sorted({power * part // 4 for power in (2**i for i in range(3, 17)) for part in (4, 6)}))
"""Sizes of the smaller side that are measured: 8, 12, 16, 24, 32 and so on; times between them are interpolated."""


class Product(NamedTuple):
    """The shape of the product of an input (rows, in_features) with a matrix (out_features, in_features).

    Args:
        rows: number of input rows (tokens).
        out_features: number of outputs.
        in_features: number of inputs.
    """

    rows: int
    out_features: int
    in_features: int


REFERENCE = Product(1024, 512, 512)
Measure = Callable[[Sequence[Product]], list[list[float]]]
"""Times several products, and returns the seconds of each product in a list for each round."""


class ProductTimes:
    """A table of product times in nanoseconds, kept in a file.

    If the file cannot be read, the times are measured again; if it cannot be written, they are not kept.

    Args:
        measure: times several products.
        file: path of the file.
        machine: everything that the times depend on (device, threads, …), written into the file as a record.

    Example:
        >>> import tempfile
        >>> def measure(products):
        ...     return [[1e-3] * len(products)] * 5
        >>> times = ProductTimes(measure, Path(tempfile.mkdtemp()) / "times.json", {})
        >>> times.prepare([Product(1, 8, 8)])
        >>> times.nanoseconds(Product(1, 8, 8))
        1000000
    """

    def __init__(self, measure: Measure, file: Path, machine: Mapping[str, Any]) -> None:
        self._measure = measure
        self._file = file
        self._machine = machine
        self._times = _read(file)

    def prepare(self, products: Iterable[Product]) -> None:
        """Measure all products that are missing in the table, together, and write the file."""
        unknown = set(products) - self._times.keys()
        if not unknown:
            return
        missing = sorted(unknown - {REFERENCE})
        measured = zip(*self._measure([REFERENCE, *missing]), strict=True)
        # The first of the quartiles.
        reference, *others = [quantiles(times, n=4, method="inclusive")[0] for times in measured]
        unit = self._times.setdefault(REFERENCE, round(1e9 * reference)) / reference
        self._times |= {product: max(1, round(unit * time)) for product, time in zip(missing, others, strict=True)}
        stored = {"x".join(map(str, product)): time for product, time in sorted(self._times.items())}
        write_measurements(self._file, "nanoseconds", stored, self._machine)

    def nanoseconds(self, product: Product) -> int:
        """Return the time of a product that was passed to `prepare`."""
        return self._times[product]

    def interpolate(self, product: Product) -> int:
        """Return the interpolated time of a product whose `knots` were passed to `prepare`, in nanoseconds."""
        low, high = ends = knots(product)
        if low == high:
            return self._times[low]
        (start, stop), side = (min(end[1:]) for end in ends), min(product[1:])
        along = (side - start) / (stop - start)
        return round((1 - along) * self._times[low] + along * self._times[high])


def knots(product: Product) -> tuple[Product, Product]:
    """Return the two grid products that a product is interpolated between; both are equal if it is on the grid.

    Example:
        >>> [knot.out_features for knot in knots(Product(rows=1, out_features=10, in_features=64))]
        [8, 12]
    """
    side = min(product.out_features, product.in_features)
    at = bisect_left(GRID, side)
    low, high = (GRID[at], GRID[at]) if GRID[at] == side else (GRID[max(at - 1, 0)], GRID[at])
    # The smaller side of a factor is its rank.
    narrow_out = product.out_features <= product.in_features
    ends = [product._replace(**{"out_features" if narrow_out else "in_features": size}) for size in (low, high)]
    return ends[0], ends[1]


def product_times(device: torch.device) -> ProductTimes:
    """Return the table of this machine for `device`, with the present number of threads, in float32."""
    depends_on = {"processor": processor(), **describe_machine(device), "dtype": "float32"}
    file = machine_file("products", depends_on)
    return ProductTimes(lambda products: time_products(products, device), file, depends_on)


@torch.inference_mode()
def time_products(products: Sequence[Product], device: torch.device) -> list[list[float]]:
    """Time products on random inputs, after some warm-up rounds.

    Args:
        products: the distinct products.
        device: where they are computed.

    Returns:
        Seconds of each product, in one list for each round.
    """
    layers = {product: nn.Linear(product.in_features, product.out_features, device=device) for product in products}
    inputs = {(p.rows, p.in_features): torch.randn(p.rows, p.in_features, device=device) for p in products}

    def run() -> list[float]:
        return [
            time_call(lambda layer=layer, x=inputs[product.rows, product.in_features]: layer(x), device)
            for product, layer in layers.items()
        ]

    for _ in range(WARM_UP):
        run()
    rounds: list[list[float]] = []
    start = read_clock(device)
    while len(rounds) < MIN_ROUNDS or (len(rounds) < ROUNDS and read_clock(device) - start < MAX_SECONDS):
        rounds.append(run())
    return rounds


def _read(file: Path) -> dict[Product, int]:
    try:
        stored = read_measurements(file, "nanoseconds")
        return {Product(*map(int, name.split("x"))): int(time) for name, time in stored.items()}
    except (ValueError, TypeError):
        return {}
