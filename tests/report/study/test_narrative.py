"""The sentences of the page, and its part on the matrices."""

from laconic.report.study.charts import charts
from laconic.report.study.narrative import failures, findings, paragraphs, to_list_text
from laconic.report.study.page import condense_plan, group_plans, mean_table
from laconic.report.study.results import results_table
from tests.report.study.records import TASK, Record, baseline, cell, failed, study

AXES = {"model": "minilm-sst2", "method": "svd", "keep": 0.5, "seed": 0}


def said(records: list) -> str:
    return "\n".join(paragraphs(records, results_table(records)))


def test_the_summary_says_what_was_done() -> None:
    text = said(study(methods=("svd", "wanda")))
    assert "48 compressed models and 2 originals" in text
    assert "method svd and wanda; keep 0.3, 0.5, 0.7 and 0.9; seed 0, 1 and 2" in text
    assert "Evaluated on glue/sst2 (872 rows of the dev split" in text
    assert "Calibrated on glue/sst2 (256 texts" in text
    assert "AVX512" in text and "2 threads" in text and "torch 2.13.0" in text
    assert "Note that" not in text and "not exact" not in text and "failed" not in text


def test_times_beside_other_work_are_warned_of() -> None:
    assert "up to 3 cells ran at once" in said(study(methods=("svd",), workers=3))
    assert "at once" not in said(study(methods=("svd",), workers=3, timed=False))


def test_rows_that_were_calibrated_on_are_warned_of() -> None:
    record = cell(AXES)
    record["evaluation"]["settings"][TASK]["calibration_rows"] = {"glue/sst2": 12}
    assert "Note that 12 rows of glue/sst2 are also in glue/sst2" in said([record])


def test_failures_are_counted_by_cause() -> None:
    records = [cell(AXES), *(failed({**AXES, "seed": seed}, "No room.") for seed in (1, 2))]
    assert "2 cells of 3 failed" in said(records)
    (cause, cells), = failures(results_table(records)).items()  # fmt: skip
    assert cause == "No room." and len(cells) == 2 and "keep 0.5, seed 1" in cells[0]


def test_what_came_out_is_the_smallest_that_is_no_worse() -> None:
    records = [baseline("minilm-sst2")]
    for keep, p in ((0.9, 0.8), (0.5, 0.2), (0.3, 0.001)):
        record = cell({**AXES, "keep": keep})
        record["evaluation"]["difference"][TASK]["accuracy"] |= {"value": -0.01, "p": p}
        records.append(record)
    (sentence,) = findings(results_table(records))
    assert "is svd, keep 0.5: 63.63 MB of 90.90 MB" in sentence and "true change of 1.7 points" in sentence
    (sentence,) = findings(results_table([records[0], records[-1]]))
    assert sentence.endswith("every compressed model is significantly worse than the original for at least one seed.")


def few_rows(record: Record) -> Record:
    """The record judged on four rows, of which nothing can be told however bad the model is."""
    evaluation = record["evaluation"]
    evaluation["settings"][TASK]["rows"] = 4
    for section, value in (("least_p", 2 / 2**4), ("detectable", None)):
        if section in evaluation:
            evaluation[section] = {TASK: {"accuracy": value}}
    if "difference" in evaluation:
        evaluation["difference"][TASK]["accuracy"] |= {"value": -0.75, "p": 0.25}
    return record


def test_nothing_is_recommended_of_rows_that_can_show_nothing() -> None:
    records = [few_rows(baseline("minilm-sst2")), *(few_rows(cell({**AXES, "keep": keep})) for keep in (0.9, 0.1))]
    (sentence,) = findings(results_table(records))
    assert "cannot tell whether any compressed model is as good" in sentence and "keep" not in sentence
    table = mean_table(results_table(records))
    remark = [column.name for column in table.columns].index("remark")
    assert {row[remark] for row in table.rows} == {"the original", "cannot tell"}
    of_accuracy = [chart for chart in charts(results_table(records)) if chart.quality.column == f"{TASK} accuracy"]
    assert of_accuracy and not any(chart.front or any(dot.on_front for dot in chart.dots) for chart in of_accuracy)
    assert all("too few rows to tell" in chart.caption for chart in of_accuracy)
    # Records of an earlier version do not say what their rows could have shown.
    for record in records[1:]:
        del record["evaluation"]["least_p"]
    assert findings(results_table(records)) == [sentence]


def test_a_cell_that_was_compared_on_nothing_is_not_recommended() -> None:
    records = [baseline("minilm-sst2"), cell({**AXES, "keep": 0.9}), cell({**AXES, "keep": 0.1})]
    for record in records[1:]:
        record["evaluation"]["difference"][TASK]["accuracy"] |= {"value": 0.0, "p": 1.0}
    records.append(cell({**AXES, "keep": 0.1, "seed": 1}))
    # As a figure that was not finite is recorded.
    records[-1]["evaluation"]["difference"][TASK]["accuracy"] |= {"value": None, "p": None}
    (sentence,) = findings(results_table(records))
    assert "is svd, keep 0.9:" in sentence


def test_a_way_of_which_a_seed_failed_is_never_the_smallest_that_is_no_worse() -> None:
    records = [baseline("minilm-sst2"), *(cell({**AXES, "keep": keep}) for keep in (0.9, 0.5))]
    for record in records[1:]:
        record["evaluation"]["difference"][TASK]["accuracy"] |= {"value": -0.01, "p": 0.8}
    records.append(failed({**AXES, "keep": 0.5, "seed": 1}, "No room."))
    (sentence,) = findings(results_table(records))
    assert "is svd, keep 0.9:" in sentence


def test_many_values_are_cut_short() -> None:
    assert to_list_text([1]) == "1" and to_list_text([]) == ""
    assert to_list_text([0.5, 0.25]) == "0.5 and 0.25"
    assert to_list_text(range(20)) == "0, 1, 2, 3, 4, 5 and 14 more"


def test_matrices_that_differ_in_their_layer_are_one_line() -> None:
    sites = {f"encoder.layer.{at}.query": {"svd": {"rank": 8 if at != 3 else 4}} for at in range(6)}
    sites |= {"encoder.layer.0.key": {"plus": {"first": {"svd": {"rank": 2}}, "second": {"rtn": {}}}}}
    sites |= {"classifier": "dense"}
    assert condense_plan({"sites": sites}) == {
        "encoder.layer.{0–2, 4–5}.query": "svd: rank 8",
        "encoder.layer.3.query": "svd: rank 4",
        "encoder.layer.0.key": "plus: first svd: rank 2, second rtn",
        "classifier": "dense",
    }


def test_equal_plans_are_told_once() -> None:
    same, other = cell(AXES), cell({**AXES, "keep": 0.25})
    found = group_plans([("one", same), ("two", same), ("three", other), ("none", {"sites": {}})])
    assert [plan.names for plan in found] == [("one", "two"), ("three",)]
