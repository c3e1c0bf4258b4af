"""Pages on a narrow screen, without a browser: the order of columns, boxes that scroll, sizes of text."""

import re

from matplotlib.figure import Figure

from laconic.report import plots
from laconic.report.evaluation import Point, trade_off_table
from laconic.report.html import Page, load_template, render
from laconic.report.study.charts import charts
from laconic.report.study.page import Picture, cell_table, mean_table, study_page
from laconic.report.study.results import results_table
from laconic.report.study.scatter import chart_svg, draw_chart
from tests.report.study.records import study

PHONE = 368
"""Pixels between the margins of a screen of 400."""


def point(method: str, keep: float) -> Point:
    return Point(
        method=method, keep=keep, nbytes=5, dense_nbytes=10, file_bytes=20, kl=1 - keep, agreement=keep, latency=0.01
    )


POINTS = [point("svd", 0.5), point("svd", 0.25), point("kfac-svd + spectrum", 0.5)]
TABLE = trade_off_table(POINTS, point("original", 1), "KL", "agreement")


def pixels(svg: str) -> float:
    """The least width that the picture asks for."""
    found = re.search(r"min-width: (\d+)px", svg)
    assert found is not None
    return float(found[1])


def demo_page() -> str:
    wide, narrow = (plots.inline_svg(plots.trade_off(POINTS, "KL", width)) for width in (plots.WIDE, plots.NARROW))
    return render(
        Page(
            title="Demo", summary=["One."], table=TABLE, pictures={"both": wide, "one": wide},
            narrow_pictures={"both": narrow}, plans={"svd": {"layer.0": "svd: rank 3"}},
        )
    )  # fmt: skip


def whole_study() -> str:
    records = study(methods=("svd", "wanda"))
    results = results_table(records)
    drawn = charts(results)
    pictures = [Picture(one.kind, chart_svg(one, draw_chart(one)), one.caption, one.stem) for one in drawn]
    return study_page(records, results, drawn, pictures, "Study")


def test_method_quality_and_size_stand_first() -> None:
    assert [column.heading for column in TABLE.columns][:4] == ["method", "KL", "agreement", "model MB"]
    results = results_table(study(methods=("svd", "wanda")))
    for sheet in (mean_table(results), cell_table(results)):
        headings = [column.heading for column in sheet.columns]
        quality, size = headings.index("glue/sst2 accuracy"), headings.index("file MB")
        assert headings[:2] == ["model", "method"] and (quality, size) == (2, 3)
        assert "KL" in headings[5] and headings.index("keep") > 5


def test_every_table_and_picture_has_a_box_of_its_own() -> None:
    for html in (demo_page(), whole_study()):
        assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
        assert '<meta name="color-scheme" content="light dark">' in html
        assert html.count("<table") == len(re.findall(r'<div class="wide"[^>]*>\s*<table', html)) > 0
        assert html.count("<svg") == len(re.findall(r'<div class="chart[^"]*"[^>]*>\s*<svg', html)) > 0
    source = load_template("base.html").render(title="", summary=[])
    assert all(rule in source for rule in (".wide { overflow-x: auto; }", ".chart { overflow-x: auto; }"))


def test_text_of_a_picture_is_never_smaller_than_it_can_be_read() -> None:
    figure = Figure(figsize=(7.2, 2))
    figure.subplots().set_title("Title", fontsize=8)
    svg = plots.inline_svg(figure)
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", svg)]
    assert min(sizes) * pixels(svg) / (7.2 * 72) >= plots.MIN_TEXT_PIXELS


def test_pictures_for_a_phone_fit_it() -> None:
    narrow = plots.inline_svg(plots.trade_off(POINTS, "KL", plots.NARROW))
    assert pixels(narrow) <= PHONE < pixels(plots.inline_svg(plots.trade_off(POINTS, "KL")))
    html = demo_page()
    assert html.count('class="chart narrow"') == html.count('class="chart wide-only"') == 1
    (chart, *_) = charts(results_table(study(methods=("svd", "wanda"))))
    assert pixels(chart_svg(chart, draw_chart(chart))) <= PHONE
