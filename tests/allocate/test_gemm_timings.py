"""The table of times of products, with a clock of our own."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from laconic.allocate.gemm_timings import GRID, REFERENCE, Product, ProductTimes, knots, product_times, time_products


class Machine:
    """Takes 1 ns for a multiplication and 1000 ns for a call, times how busy it is."""

    def __init__(self) -> None:
        self.asked: list[list[Product]] = []
        self.busy = 1.0

    def time(self, product: Product) -> int:
        return product.rows * product.out_features * product.in_features + 1000

    def measure(self, products: Sequence[Product]) -> list[list[float]]:
        self.asked.append(list(products))
        # Most rounds are disturbed.
        noise = (1.0, 1.0, 3.0, 1.5, 1.0)
        return [[self.busy * factor * self.time(product) * 1e-9 for product in products] for factor in noise]


def table(machine: Machine, folder: Path) -> ProductTimes:
    return ProductTimes(machine.measure, folder / "kept" / "products.json", {"processor": "of a test"})


def test_the_table_is_exact_where_it_was_measured_and_linear_in_between(tmp_path: Path) -> None:
    machine = Machine()
    times = table(machine, tmp_path)
    dense, thin, wide = Product(10, 90, 100), Product(10, 20, 100), Product(10, 100, 20)
    times.prepare([dense, *knots(thin), *knots(wide)])
    assert times.nanoseconds(dense) == machine.time(dense)
    # This machine is linear, so the line between two knots is the truth.
    assert times.interpolate(thin) == machine.time(thin)
    assert times.interpolate(wide) == machine.time(wide)


def test_a_side_on_the_grid_is_a_knot_by_itself_and_so_is_one_below_it() -> None:
    assert knots(Product(4, 16, 100)) == (Product(4, 16, 100),) * 2
    assert knots(Product(4, 100, 16)) == (Product(4, 100, 16),) * 2
    assert knots(Product(4, 3, 100)) == (Product(4, GRID[0], 100),) * 2
    assert knots(Product(4, 20, 100)) == (Product(4, 16, 100), Product(4, 24, 100))


def test_what_was_measured_is_kept_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    machine = Machine()
    one, two = Product(1, 8, 9), Product(1, 8, 10)
    table(machine, tmp_path).prepare([one])
    again = table(machine, tmp_path)
    again.prepare([one])
    assert machine.asked == [[REFERENCE, one]]
    # A busier day: the reference takes as much longer as everything else.
    machine.busy = 2.5
    again.prepare([one, two, REFERENCE])
    assert machine.asked[1:] == [[REFERENCE, two]]
    assert (again.nanoseconds(one), again.nanoseconds(two)) == (machine.time(one), machine.time(two))
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["products.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"nanoseconds": {"1x2": 3}}', '{"nanoseconds": 3}', '{"other": 1}'])
def test_a_file_that_is_no_table_is_measured_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "products.json").write_text(text)
    machine = Machine()
    times = table(machine, tmp_path)
    times.prepare([Product(1, 8, 9)])
    assert times.nanoseconds(Product(1, 8, 9)) == machine.time(Product(1, 8, 9))


def test_a_folder_that_cannot_be_written_to_costs_the_measurement_again_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder would be")
    machine = Machine()
    times = table(machine, tmp_path)
    times.prepare([Product(1, 8, 9)])
    assert times.nanoseconds(Product(1, 8, 9)) == machine.time(Product(1, 8, 9))


def test_the_file_is_of_this_machine_and_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "laconic.allocate.gemm_timings.time_products", lambda products, device: Machine().measure(products)
    )
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        product_times(torch.device("cpu")).prepare([Product(1, 8, 9)])
    assert len(list(tmp_path.glob("products-*.json"))) == 2


def test_every_product_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.allocate.gemm_timings.MAX_SECONDS", 0.0)
    rounds = time_products([Product(2, 3, 4), Product(5, 4, 3)], torch.device("cpu"))
    assert [len(times) for times in rounds] == [2] * 5
    assert all(time > 0 for times in rounds for time in times)
