"""Tables, pictures and the page, from a few points."""

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from laconic.model import load
from laconic.report import plots
from laconic.report.evaluation import Point, evaluation_remarks, evaluation_tables, trade_off_table
from laconic.report.html import Page, render
from laconic.report.inspection.parts import measure_parts
from laconic.report.tables import Column, Table
from tests.architectures import BY_NAME


def point(method: str, keep: float, kl: float) -> Point:
    return Point(
        method=method, keep=keep, nbytes=int(1000 * keep), dense_nbytes=1000, file_bytes=int(2000 * keep), kl=kl,
        agreement=1 - kl, latency=0.1 * keep,
    )  # fmt: skip


ORIGINAL = point("original", 1.0, 0.0)
POINTS = [point(name, keep, kl / keep) for name, kl in (("svd", 0.2), ("a<b>", 0.1)) for keep in (0.75, 0.5, 0.25)]
TABLE = trade_off_table(POINTS, ORIGINAL, "KL", "agreement")


def test_markdown_is_aligned_and_complete() -> None:
    lines = Table((Column("name"), Column("x", "{:.1f}")), (("a|b", 1.25), ("c", None))).to_markdown().splitlines()
    assert lines == ["| name | x |", "| --- | ---: |", "| a\\|b | 1.2 |", "| c | – |"]


def test_the_table_starts_with_the_original() -> None:
    assert TABLE.shown()[0][0] == "original" and TABLE.shown()[0][-1] == "1.00×"
    assert len(TABLE.rows) == 1 + len(POINTS)
    assert TABLE.to_rich().row_count == len(TABLE.rows)


def test_the_picture_names_each_line_and_is_the_same_file_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plots.save(plots.trade_off(POINTS, "KL"), tmp_path / name)
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert "svd" in words and "a<b>" in words
    assert (tmp_path / "one.png").stat().st_size > 5000


def test_a_perfect_model_does_not_break_the_log_axis(tmp_path: Path) -> None:
    plots.save(plots.trade_off([point("svd", 0.5, 0.0), point("svd", 0.25, 0.1)], "KL"), tmp_path / "picture")
    plots.save(plots.trade_off([point("svd", 0.5, 0.0)], "KL"), tmp_path / "nothing")


def test_the_page_is_self_contained_and_escaped() -> None:
    page = Page(
        title="a & b",
        summary=["One <script>alert(1)</script> paragraph."],
        table=TABLE,
        pictures={"caption": plots.inline_svg(plots.trade_off(POINTS, "KL"))},
        plans={"svd": {"layer.0": "svd, rank 8"}},
    )
    html = render(page)
    assert "<script>alert(1)" not in html and "a<b>" not in html.replace("<title>", "")
    assert "svd, rank 8" in html
    loaded = _Loads()
    loaded.feed(html)
    assert loaded.from_elsewhere == []


class _Loads(HTMLParser):
    """Collects every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.from_elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.from_elsewhere += [
            str(value) for name, value in attrs if name in ("src", "href", "xlink:href") and value and value[0] != "#"
        ]


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "bart-scaled", "llama-tied"])
def test_the_parts_of_a_model_add_up(name: str) -> None:
    lm = BY_NAME[name].lm()
    seen = measure_parts(lm)
    assert sum(part.parameters for part in seen.parts) == seen.parameters == lm.model.num_parameters()
    assert sum(part.nbytes for part in seen.parts) == seen.nbytes
    assert all(part.parameters >= 0 for part in seen.parts), "a tied matrix counts once"
    assert sum(part.sites for part in seen.parts) == len(seen.sites)


def test_a_compressed_model_can_be_inspected_too(tiny_model: Path) -> None:
    lm = load(str(tiny_model))
    assert measure_parts(lm).to_json()["stacks"] == [{"path": "encoder.layer", "blocks": 2}]


def test_an_evaluation_becomes_tables() -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    speed = {"batch": 8, "length": 128, "median": 0.1, "lower_quartile": 0.09, "upper_quartile": 0.11,
             "throughput": 10240.0, "macs_per_token": 1e6, "peak_bytes": 10**7}  # fmt: skip
    cost = {"parameters": 10, "bytes": 40, "memory_bytes": 40, "latency": [speed],
            "parts": {"embeddings": 10**6, "attention": 2 * 10**6}, "runtime": {"name": "eager"}}  # fmt: skip
    alone = {"results": {"glue/sst2": {"accuracy": interval}}, "cost": cost}
    assert list(evaluation_tables(alone)) == ["Quality", "Size", "Megabytes by part", "Speed of one forward pass"]
    assert list(evaluation_tables({"results": {}, "cost": cost})) == [
        "Size",
        "Megabytes by part",
        "Speed of one forward pass",
    ]
    ran = {"instructions": "AVX512", "int8": {"4 rows: onednn": 6}, "int4": {"4 rows: decoded": 2}}
    named = evaluation_tables({"results": {}, "cost": {**cost, "machine": ran}})[
        "Kernels that were fastest here"
    ].shown()
    assert [row[1:] for row in named] == [
        ["int8", "4 rows: onednn", "6", "AVX512"],
        ["int4", "4 rows: decoded", "2", "AVX512"],
    ]
    compared = {
        **alone,
        "original": {"results": alone["results"], "cost": cost},
        "difference": {"glue/sst2": {"accuracy": {**interval, "p": 0.01}}},
        "least_p": {"glue/sst2": {"accuracy": 0.001}},
        "detectable": {"glue/sst2": {"accuracy": 0.02}},
        "fidelity": {"kl": 0.1, "kl_low": 0.0, "kl_high": 0.2, "top1_agreement": 0.9, "cosine": 1.0, "predictions": 3},
    }
    tables = evaluation_tables(compared)
    assert tables["Change against the original"].shown()[0][-5:] == [
        "+0.5000", "0.4000 – 0.6000", "0.010", "a real change", "±0.0200",
    ]  # fmt: skip
    assert [row[0] for row in tables["Size"].shown()] == ["this model", "original"]
    assert tables["Distance to the original"].shown()[0][2] == "90.0%"


@pytest.mark.parametrize(
    ("p", "least_p", "value", "said", "remark"),
    [
        (0.01, 0.001, 0.5, "a real change", ""),
        (0.4, 0.001, 0.5, "noise", "Noise: "),
        (1.0, 0.001, 0.0, "no change", "Noise: "),
        (0.125, 0.125, 1.1e8, "cannot tell", "Cannot tell: on so few rows"),
        (1.0, 0.125, 0.0, "cannot tell", "Cannot tell: on so few rows"),
    ],
)
def test_a_change_is_said_in_words(p: float, least_p: float, value: float, said: str, remark: str) -> None:
    change = {"value": value, "low": value, "high": value, "p": p}
    result = {"results": {}, "settings": {}, "difference": {"t": {"m": change}}, "least_p": {"t": {"m": least_p}},
              "detectable": {"t": {"m": None}}}  # fmt: skip
    assert evaluation_tables(result)["Change against the original"].shown()[0][5] == said
    assert "".join(evaluation_remarks(result)).startswith(remark) and bool(evaluation_remarks(result)) is bool(remark)
