"""The data and the mean over seeds of `python -m benchmarks heads`."""

from xml.etree import ElementTree

import numpy as np

from benchmarks.heads import SEEDS, MeanOfSeeds
from benchmarks.heads_data import tag_words


def test_neighbours_of_one_label_are_one_part_of_an_address() -> None:
    address = ElementTree.fromstring(
        "<AddressString><AddressNumber>9</AddressNumber> <StreetName>Martin</StreetName> "
        "<StreetName>Luther King</StreetName> <StreetNamePostType>Drive,</StreetNamePostType></AddressString>"
    )
    assert tag_words(address).splitlines() == [
        "9 B-AddressNumber",
        "Martin B-StreetName",
        "Luther I-StreetName",
        "King I-StreetName",
        "Drive, B-StreetNamePostType",
    ]


def test_a_metric_of_all_seeds_is_the_mean_of_theirs() -> None:
    tables = [np.array([[right], [1.0]]) for right in (0.0, 1.0, 1.0)]
    assert len(tables) == len(SEEDS)
    metric = MeanOfSeeds(lambda table: float(table[:, 0].mean()))
    assert np.isclose(metric(np.hstack(tables)), (0.5 + 1 + 1) / 3)
