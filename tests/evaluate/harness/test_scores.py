"""Scores of rows become columns; what the harness aggregates stays aggregated by it."""

import pytest

from laconic.evaluate.harness.task import column_metrics, score_table


def sample(doc: int, filter: str = "none", **scores: object) -> dict[str, object]:
    return {"doc_id": doc, "filter": filter, "metrics": list(scores), **scores}


def test_each_metric_has_its_columns():
    table, widths = score_table([sample(0, acc=1, pair=(-2.0, 3)), sample(1, acc=False, pair=(-4.0, 1))])
    assert widths == {"acc": 1, "pair": 2}
    assert table.tolist() == [[1, -2, 3], [0, -4, 1]]
    metrics = column_metrics(widths, {"acc": sum, "pair": lambda pairs: sum(a * b for a, b in pairs)})
    assert {name: metric(table) for name, metric in metrics.items()} == {"acc": 1, "pair": pytest.approx(-10)}


def test_a_filter_is_part_of_the_name():
    samples = [sample(doc, filter, em=doc) for filter in ("strict", "none") for doc in (0, 1)]
    table, widths = score_table(samples)
    assert widths == {"em,strict": 1, "em": 1}
    assert column_metrics(widths, {"em": sum})["em,strict"](table) == 1


def test_what_is_no_number_for_every_row_has_no_column():
    samples = [sample(0, bleu=("a", "b"), acc=1.0, some=1), sample(1, bleu=("a", "c"), acc=0.0)]
    table, widths = score_table(samples)
    assert widths == {"acc": 1} and table.shape == (2, 1)
    assert score_table([sample(0, bleu=("a", "b"))])[0].shape == (1, 0)
