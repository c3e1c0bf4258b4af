"""The charts of a study: their number, their content, and the Pareto front."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.report.study.charts import Chart, charts, pareto_front
from laconic.report.study.results import results_table
from laconic.report.study.scatter import chart_svg, draw_chart
from tests.report.study.records import TASK, Record, baseline, cell, failed, study

AXES = {"model": "minilm-sst2", "method": "svd", "keep": 0.5, "seed": 0}
ACCURACY, KL = "glue/sst2 accuracy", "kl"


def found(records: list[Record]) -> dict[tuple[str, str, str], Chart]:
    return {(one.quality.column, one.cost.column, one.title): one for one in charts(results_table(records))}


def test_every_model_has_a_picture_of_each_quality_against_each_cost() -> None:
    drawn = found(study(methods=("svd", "wanda"), seeds=(0,)))
    costs = ("file_bytes", "latency 1x128", "latency 8x128", "keep")
    assert set(drawn) == {
        (quality, cost, model)
        for quality in (ACCURACY, KL) for cost in costs for model in ("minilm-sst2", "bert-base-sst2")
    }  # fmt: skip
    assert len({one.stem for one in drawn.values()}) == len(drawn)
    some = drawn[ACCURACY, "file_bytes", "minilm-sst2"]
    assert {dot.colour for dot in some.dots} == {"low rank", "pruning"}


def test_one_family_is_coloured_by_method_and_groups_of_layers_get_pictures_of_their_own() -> None:
    records = study(models=("minilm-sst2",), methods=("svd", "drone"), seeds=(0,), targets=("attention", "ffn"))
    drawn = found(records)
    plain = drawn[ACCURACY, "file_bytes", "minilm-sst2"]
    groups = drawn[ACCURACY, "file_bytes", "minilm-sst2 by group of layers"]
    assert {dot.colour for dot in plain.dots} == {"svd", "drone"}
    assert {dot.colour for dot in groups.dots} == {"attention", "ffn"}
    assert {dot.shape for dot in groups.dots} == {"svd", "drone"}


def test_nothing_beats_what_is_on_the_front() -> None:
    for one in charts(results_table(study(models=("minilm-sst2",)))):
        if one.kind == "amount":
            assert not one.front
            continue
        sign = 1 if one.quality.higher_is_better else -1
        best = {dot.at for dot in one.dots if dot.on_front}
        places = {dot.at for dot in one.dots} | ({one.original} if None not in one.original else set())
        for x, y in {dot.at for dot in one.dots}:
            beaten = any(a <= x and sign * b >= sign * y and (a, b) != (x, y) for a, b in places)
            assert ((x, y) in best) is not beaten


def test_equal_models_are_on_the_front_together() -> None:
    one = cell(AXES)
    same = {**one, "key": "another", "axes": {**AXES, "method": "drone"}}
    chart = found([one, same])[ACCURACY, "file_bytes", "minilm-sst2"]
    assert [dot.on_front for dot in chart.dots] == [True, True] and len(chart.front) == 1


def test_seeds_are_dots_around_their_mean_and_intervals_those_of_the_rows() -> None:
    records = [baseline("minilm-sst2")]
    records += [cell(AXES | {"seed": seed}) for seed in range(3)]
    (dot,) = found(records)[ACCURACY, "file_bytes", "minilm-sst2"].dots
    assert len(dot.cells) == 3
    assert dot.at[1] == pytest.approx(sum(y for _, y in dot.cells) / 3)
    assert dot.low is not None and dot.high is not None and dot.high - dot.low == pytest.approx(0.04)
    assert "svd" in dot.title and "MB" in dot.title


def test_a_model_without_times_has_no_picture_of_them() -> None:
    records = study(models=("minilm-sst2",), methods=("svd",), timed=False)
    assert {one.kind for one in charts(results_table(records))} == {"size", "amount"}


def test_only_failures_have_no_picture() -> None:
    assert charts(results_table([failed(AXES, "No.")])) == []


def odd(changes: dict[str, float]) -> list[Record]:
    record = cell(AXES)
    record["evaluation"]["fidelity"] |= changes
    return [record]


@pytest.mark.parametrize(
    "records",
    [
        odd({"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0}),
        [*odd({"kl": 1e-6, "kl_low": -1e-7, "kl_high": 1e-5}), cell(AXES | {"keep": 0.3})],
        odd({}),
        [baseline("minilm-sst2"), *odd({})],
    ],
)  # fmt: skip
def test_odd_studies_are_drawn(records: list[Record]) -> None:
    for one in charts(results_table(records)):
        svg = chart_svg(one, draw_chart(one))
        ElementTree.fromstring(svg)
        assert 'role="img"' in svg


def test_a_perplexity_that_explodes_is_drawn_on_a_logarithmic_axis() -> None:
    records = [cell(AXES | {"keep": keep}) for keep in (0.9, 0.5, 0.1)]
    for record, value in zip(records, (12.0, 40.0, 3e5), strict=True):
        figure = {"value": value, "low": value * 0.9, "high": value * 1.1}
        record["evaluation"]["results"] = {"perplexity:text": {"perplexity": figure}}
    (one,) = [one for one in charts(results_table(records)) if one.kind == "size" and one.quality.column != KL]
    assert not one.quality.higher_is_better
    (axes,) = draw_chart(one).axes
    assert axes.get_yscale() == "log"


def test_a_mark_says_what_it_is_and_pictures_share_no_names() -> None:
    drawn = charts(results_table(study(methods=("svd", "wanda"), keeps=(0.7, 0.3), seeds=(0,))))
    svgs = [chart_svg(one, draw_chart(one)) for one in drawn[:2]]
    assert svgs[0].count("<title>") == len(drawn[0].dots)
    assert "svd, keep 0.7: " in svgs[0]
    ids = [set(element.get("id", "") for element in ElementTree.fromstring(svg).iter()) - {""} for svg in svgs]
    assert not any(name.startswith(("figure", "axes", "text")) for name in ids[0] | ids[1])
    assert TASK in drawn[0].caption


def test_a_task_is_told_once_and_nothing_more_is_not_told() -> None:
    records = []
    for task, then in (("glue/sst2", "nothing"), ("glue/mrpc", "finetune")):
        record = cell({**AXES, "then": then, "task": task})
        results = record["evaluation"]["results"]
        record["evaluation"]["results"] = {task: results[TASK]}
        records.append(record)
    drawn = charts(results_table(records))
    told = {(one.title, one.dots[0].compression) for one in drawn if one.quality.column != KL}
    assert told == {("minilm-sst2", "svd"), ("minilm-sst2", "svd, then finetune")}
    told = {(one.title, one.dots[0].compression) for one in drawn if one.quality.column == KL}
    assert told == {("minilm-sst2, glue/sst2", "svd"), ("minilm-sst2, glue/mrpc", "svd, then finetune")}


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS, st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], higher: bool) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        better = one[1] > other[1] if higher else one[1] < other[1]
        return one[0] <= other[0] and (better or one[1] == other[1]) and one != other

    found = pareto_front(points, higher_is_better=higher)
    expected = {point for point in points if not any(beats(other, point) for other in points)}
    assert {points[index] for index in found} == expected
    assert len(found) == len(expected), "equal points stand for each other"
    assert all(points.index(points[index]) == index for index in found), "the first of equal ones"
    costs = [points[index][0] for index in found]
    assert costs == sorted(costs)
