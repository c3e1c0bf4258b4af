"""Records as rows: what is in a column, what kind it is, and what is missing."""

import csv
import io
from statistics import fmean, stdev

import pytest

from laconic.evaluate.fidelity import Fidelity
from laconic.evaluate.metrics import Interval
from laconic.evaluate.paired import Difference
from laconic.evaluate.run import Evaluation
from laconic.evaluate.timing import Generation, Quartiles
from laconic.report.study.groups import amount_measures, describe_change, group_cells, quality_measure, quality_measures
from laconic.report.study.page import cell_table, mean_table
from laconic.report.study.results import results_table
from laconic.report.study.write import as_arrow, as_csv
from laconic.report.tables import Spread
from tests.report.study.records import TASK, baseline, cell, failed, study

AXES = {"model": "minilm-sst2", "method": "svd", "keep": 0.5, "seed": 0}


def test_a_row_has_what_the_record_has() -> None:
    record = cell(AXES)
    (row,) = results_table([record]).rows
    figure = record["evaluation"]["results"][TASK]["accuracy"]
    change = record["evaluation"]["difference"][TASK]["accuracy"]
    assert row["glue/sst2 accuracy"] == figure["value"] and row["glue/sst2 accuracy low"] == figure["low"]
    assert row["glue/sst2 accuracy change"] == change["value"] and row["glue/sst2 accuracy p"] == change["p"]
    assert row["glue/sst2 accuracy detectable"] == 0.017
    assert row["kept"] == record["bytes"] / record["dense_bytes"]
    assert row["latency 8x128"] == record["evaluation"]["cost"]["latency"][1]["median"]
    assert row["seconds"] == record["seconds"]["total"]
    assert row["baseline"] is False and row["error"] is None


def test_writing_and_energy_have_columns_where_they_were_measured() -> None:
    assert not [
        name for name in results_table([cell(AXES)]).columns if "joules" in name or "code" in name or "fill" in name
    ]
    record, quick = cell(AXES), Quartiles(0.5, 0.4, 0.6)
    written = Generation(batch=2, prompt=100, new=32, prefill=quick, step=Quartiles(0.01, 0.008, 0.012), runs=5)
    record["evaluation"]["cost"]["generation"] = [written.to_json()]
    record["evaluation"]["cost"]["latency"][0]["joules"] = 1.5
    results = results_table([record, cell({**AXES, "seed": 1})])
    row, other = results.rows
    assert (row["prefill 2x100"], row["decode 2x100"]) == (400, 200)
    assert (row["prefill 2x100 seconds"], row["decode 2x100 seconds"]) == (0.5, 0.01)
    assert row["latency 1x128 joules"] == 1.5 and row["latency 8x128 joules"] is None
    assert other["decode 2x100"] is None
    assert as_arrow(results)["decode 2x100"].to_pylist() == [200.0, None]
    headings = [column.heading for column in cell_table(results).columns]
    assert "joules for 1 × 128 tokens" in headings and "joules for 8 × 128 tokens" not in headings
    assert {"tokens/s reading 2 × 100", "tokens/s writing after 2 × 100"} <= set(headings)
    assert {"decode 2x100", "latency 1x128 joules"} <= {column.name for column in mean_table(results).columns}


def test_the_made_up_records_are_like_real_ones() -> None:
    figure, change = Interval(0.5, 0.4, 0.6), Difference(-0.1, -0.2, 0.0, 0.03, 0.01, 0.05)
    near = Fidelity(0.1, 0.05, 0.2, 0.9, 0.99, 8, 8, TASK, "dev", 128, "bert", 0)
    real = Evaluation(
        results={TASK: {"accuracy": figure}}, settings={TASK: {"rows": 8}}, cost=None, original=None, fidelity=near,
        difference={TASK: {"accuracy": change}},
    ).to_json()  # fmt: skip
    made = cell(AXES)
    assert real["fidelity"].keys() - {"versions"} == made["evaluation"]["fidelity"].keys()
    (row,) = results_table([{**made, "evaluation": real}]).rows
    assert (row["kl"], row["kl_high"], row["glue/sst2 accuracy low"]) == (0.1, 0.2, 0.4)
    assert (row["glue/sst2 accuracy p"], row["glue/sst2 accuracy detectable"]) == (0.03, 0.05)


def test_recipes_without_an_axis_of_models_have_the_models_of_their_recipes() -> None:
    records = []
    for model in ("models/one", "models/two/"):
        record = cell({"model": "minilm-sst2", "method": "svd", "seed": 0})
        records.append({**record, "axes": {"recipe": "original"}, "recipe": {"model": model}, "baseline": True})
    assert [group.axes["model"] for group in group_cells(results_table(records))] == ["one", "two"]


def test_axes_stand_in_a_fixed_order_and_never_on_a_column_of_another_meaning() -> None:
    results = results_table(
        [cell({"seed": 1, "keep": 0.5, "model": "minilm-sst2", "method": "svd", "then": "nothing", "bytes": 3})]
    )
    assert list(results.axes) == ["model", "method", "keep", "bytes", "then", "seed"]
    assert results.axes["bytes"] == "axis bytes"
    (row,) = results.rows
    assert row["axis bytes"] == 3 and row["bytes"] != 3


def test_a_failed_cell_has_a_cause_and_no_numbers() -> None:
    results = results_table([cell(AXES), failed({**AXES, "seed": 1}, "The disk, is full.")])
    assert results.rows[1]["error"] == "The disk, is full." and results.rows[1]["kl"] is None
    assert [row["state"] for row in results.rows].count("done") == 1
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert lines[1]["error"] == "The disk, is full." and lines[1]["kl"] == "" and lines[1]["state"] == "failed"


def test_numbers_survive_csv_and_columns_keep_their_types() -> None:
    results = results_table(study(models=("minilm-sst2",), methods=("svd",)))
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    table = as_arrow(results)
    assert [line["key"] for line in lines] == table["key"].to_pylist()
    for column in ("kl", "keep", "latency 1x128", "bytes", "seed"):
        numbers = [float(line[column]) if line[column] else None for line in lines]
        assert numbers == [row[column] for row in results.rows] == table[column].to_pylist()
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["seed"], types["keep"], types["baseline"], types["method"]) == ("int64", "double", "bool", "string")


def test_an_axis_of_several_kinds_is_text() -> None:
    results = results_table([cell({**AXES, "rank": rank}) for rank in (8, "full")])
    assert as_arrow(results)["rank"].to_pylist() == ["8", "full"]
    assert [measure.column for measure in amount_measures(results)] == []


def test_cells_that_differ_in_the_seed_are_one_group() -> None:
    records = [cell({**AXES, "seed": seed}) for seed in range(3)]
    original, group = group_cells(results_table([*records, baseline("minilm-sst2")]))
    assert original.baseline and len(group.rows) == 3
    values = [record["evaluation"]["fidelity"]["kl"] for record in records]
    assert group.spread("kl") == Spread(fmean(values), stdev(values), 3)
    assert group.spread("no such column") is None


def test_a_spread_is_written_with_its_mean() -> None:
    assert format(Spread(0.9123, 0.004, 3), ".1%") == "91.2% ± 0.4%"
    assert format(Spread(2e6, 1e5, 2) * 1e-6, ".2f") == "2.00 ± 0.10"
    assert format(Spread(0.5, None, 1), ".1f") == format(Spread(0.5, 0.0, 3), ".1f") == "0.5"


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("accuracy", True), ("p@1", True), ("matthews", True), ("f1", True), ("character_f1", True), ("perplexity", False),
     ("word_perplexity", False), ("bits_per_byte", False), ("accuracy/agreement", True)],
)  # fmt: skip
def test_which_way_is_better(metric: str, higher: bool) -> None:
    assert quality_measure("task", metric).higher_is_better is higher


def test_the_first_metric_of_a_task_is_its_quality() -> None:
    record = cell(AXES)
    record["evaluation"]["results"]["glue/mrpc"] = {
        name: {"value": 0.8, "low": 0.7, "high": 0.9} for name in ("f1", "accuracy")
    }
    assert [one.column for one in quality_measures(results_table([record]))] == [
        "glue/sst2 accuracy",
        "glue/mrpc f1",
        "kl",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(-0.01, 0.3), (-0.01, 0.05)], "noise"),
        ([(-0.01, 0.01), (-0.01, 0.049)], "loss"),
        ([(0.02, 0.01), (0.02, 0.01)], "gain"),
        ([(-0.02, 0.01), (-0.01, 0.2)], "loss; noise in 1 of 2 seeds"),
        ([(-0.02, 0.01), (0.02, 0.01)], "change"),
    ],
)
def test_a_remark_tells_noise_from_change(changes: list[tuple[float, float]], said: str) -> None:
    records = []
    for seed, (value, p) in enumerate(changes):
        record = cell({**AXES, "seed": seed})
        record["evaluation"]["difference"][TASK]["accuracy"] |= {"value": value, "p": p}
        records.append(record)
    (group,) = group_cells(results_table(records))
    assert describe_change(group, [quality_measure(TASK, "accuracy")]) == said


def test_a_remark_counts_what_failed() -> None:
    (group,) = group_cells(results_table([cell(AXES), failed({**AXES, "seed": 1}, "No.")]))
    assert describe_change(group, []) == "1 of 2 cells failed"
    (group,) = group_cells(results_table([failed(AXES, "No.")]))
    assert describe_change(group, []) == "failed"
