"""The whole report: its files, the page against results.csv, its weight; where there is a browser, how it behaves."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import pytest

from laconic.errors import UserError
from laconic.markdown import plain
from laconic.report.study import ReportPaths, write_report
from laconic.report.study.charts import charts
from laconic.report.study.page import Picture, study_page
from laconic.report.study.results import results_table
from laconic.report.study.write import write_figures, write_file
from tests.report.study.records import failed, study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEGABYTES_OF_A_PAGE = 3
PHONE = 390


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportPaths]:
    records = study(models=("minilm-sst2",), methods=("svd", "kfac-svd", "wanda"), keeps=(0.7, 0.3))
    records.append(
        failed({"model": "minilm-sst2", "method": "drone", "keep": 0.1, "seed": 0}, "No <rank> is left & more.")
    )
    yield write_report(records, tmp_path_factory.mktemp("study"), "Low <rank> & pruning")


def test_everything_is_written(written: ReportPaths) -> None:
    folder = written.page.parent
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "results.csv", "results.parquet", "results.md", "figures"
    }  # fmt: skip
    stems = {path.name.rsplit(".", 1)[0] for path in (folder / "figures").glob("[!.]*")}
    assert stems == {path.name for path in written.figures} and len(stems) == 8
    assert all(
        path.with_name(f"{path.name}{end}").stat().st_size > 5000
        for path in written.figures
        for end in (".png", ".svg")
    )
    markdown = written.markdown.read_text()
    assert (
        "| model | method | glue/sst2 accuracy | file MB |" in markdown and "±" in markdown and "1 of 1" not in markdown
    )


def test_the_page_loads_nothing_and_escapes_what_it_is_told(written: ReportPaths) -> None:
    html = written.page.read_text()
    assert "<rank>" not in html and "Low &lt;rank&gt; &amp; pruning" in html
    loads = re.findall(r'(?:src|xlink:href)="([^"]+)"|<link[^>]*>|@import|url\(([^)]+)\)', html)
    assert all(target.startswith("#") for pair in loads for target in pair if target)
    assert len(html.encode()) < MEGABYTES_OF_A_PAGE * 1e6


def test_names_are_shown_as_they_are_everywhere(tmp_path: Path) -> None:
    name = r"_w|rd <b>x</b> `q` $\frac$ *s* & $a_{$"
    records = [
        {**record, "axes": {**record["axes"], "model": name, "method": record["axes"]["method"].replace("svd", name)}}
        for record in study(models=("minilm-sst2",), methods=("svd", "wanda"), keeps=(0.7, 0.3))
    ]
    report = write_report(records, tmp_path, name)
    assert "<b>" not in report.page.read_text() and escape(name) in report.page.read_text()
    markdown = report.markdown.read_text()
    assert "<b>" not in markdown and markdown.startswith(f"# {plain(name)}\n")
    assert len({line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    for stem in report.figures:
        words = "".join(ElementTree.fromstring(stem.with_name(f"{stem.name}.svg").read_bytes()).itertext())
        assert name in words, "in the legend"


def test_links_lead_to_what_there_is(written: ReportPaths) -> None:
    links = [str(target) for target in re.findall(r'<a href="([^"]+)"', written.page.read_text())]
    folder = written.page.parent
    assert all((folder / link).exists() for link in links if link.startswith("figures/"))
    assert sum(link.startswith("models/") for link in links) == 18


class _Tables(HTMLParser):
    """The rows of each table, by its id: column → (what it is sorted by, what is shown)."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[tuple[str, str]]]] = {}
        self._table, self._value, self._shown = "", None, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "table":
            self._table = found.get("id") or "other"
            self.columns[self._table], self.rows[self._table] = [], []
        elif tag == "th":
            self.columns[self._table].append(found.get("data-column") or "")
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag == "td":
            self._value, self._shown = found.get("data-value"), ""

    def handle_data(self, data: str) -> None:
        self._shown += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "td" and self._value is not None:
            self.rows[self._table][-1].append((self._value, self._shown))

    def table(self, name: str) -> list[dict[str, tuple[str, str]]]:
        return [dict(zip(self.columns[name], row, strict=True)) for row in self.rows[name] if row]


def test_the_numbers_of_the_page_are_those_of_the_file(written: ReportPaths) -> None:
    parsed = _Tables()
    parsed.feed(written.page.read_text())
    lines = {line["key"]: line for line in csv.DictReader(written.csv.read_text().splitlines())}
    cells = parsed.table("cells")
    assert len(cells) == len(lines) == 20
    for row in cells:
        line = lines[row["key"][0]]
        assert all(value == line[column] for column, (value, _) in row.items())
        if line["state"] == "done":
            assert row["glue/sst2 accuracy"][1] == f"{float(line['glue/sst2 accuracy']):.1%}"
            assert row["file_bytes"][1] == f"{float(line['file_bytes']) / 1e6:,.2f}"
        else:
            assert row["glue/sst2 accuracy"] == ("", "–")


def test_the_means_of_the_page_are_means_over_the_file(written: ReportPaths) -> None:
    parsed = _Tables()
    parsed.feed(written.page.read_text())
    lines = [line for line in csv.DictReader(written.csv.read_text().splitlines()) if line["state"] == "done"]
    rows = parsed.table("means")
    assert len(rows) == 8
    for row in rows:
        mine = [line for line in lines if (line["method"], line["keep"]) == (row["method"][0], row["keep"][0])]
        for column in ("kl", "glue/sst2 accuracy", "latency 1x128", "file_bytes"):
            numbers = [float(line[column]) for line in mine if line[column]]
            assert (row[column][0] == "") is (not numbers)
            if numbers:
                assert float(row[column][0]) == pytest.approx(fmean(numbers), rel=1e-12)
            if len(numbers) > 1 and column == "kl":
                assert row[column][1] == f"{fmean(numbers):.4f} ± {stdev(numbers):.4f}"


@pytest.mark.slow
def test_a_page_of_very_much_stays_light_and_says_what_it_leaves_out() -> None:
    records = study(keeps=tuple(at / 100 for at in range(1, 100)))
    for index, record in enumerate(records):
        record["sites"] = {f"layer.{at}.dense": {"svd": {"rank": (index * at) % 977}} for at in range(72)}
    results = results_table(records)
    drawn = charts(results)
    pictures = [Picture("size", "<svg>" + " " * 40_000 + "</svg>", "A picture.", f"picture-{at}") for at in range(80)]
    html = study_page(records, results, drawn, pictures, "Very much")
    assert len(html.encode()) < MEGABYTES_OF_A_PAGE * 1e6
    assert "more figures are in the folder figures" in html and "more plans are in the records" in html
    assert re.search(r"which also have the \d+ cells that are not shown here", html)


def test_a_report_is_written_over_and_never_half(
    written: ReportPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = study(models=("minilm-sst2",), methods=("svd",), keeps=(0.5,), seeds=(0,), timed=False)
    first = write_report(records, tmp_path, "One")
    assert write_report(records, tmp_path, "One") == first
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("laconic.report.study.write.os.fsync", _full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device; name another folder\.$"):
        write_report(records, tmp_path, "Another")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_figures_of_an_earlier_report_go_and_those_of_others_stay(tmp_path: Path) -> None:
    many = study(models=("minilm-sst2",), methods=("svd",), keeps=(0.7, 0.5), seeds=(0,))
    few = study(models=("minilm-sst2",), methods=("svd",), keeps=(0.7, 0.5), seeds=(0,), timed=False)
    before = {path.name for path in write_report(many, tmp_path, "One").figures}
    stale = sorted(before - {path.name for path in write_report(few, tmp_path / "apart", "One").figures})
    figures = tmp_path / "figures"
    (figures / "mine.png").write_text("drawn by somebody")
    kept = figures / f"{stale[0]}.svg"
    kept.write_text("changed by somebody")
    written = write_report(few, tmp_path, "One")
    ours = {f"{path.name}{end}" for path in written.figures for end in (".png", ".svg")}
    assert {path.name for path in figures.glob("[!.]*")} == {*ours, "mine.png", kept.name}
    assert kept.read_text() == "changed by somebody" and len(stale) > 1


def test_figures_of_a_report_that_was_killed_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, content: str | bytes) -> None:
        if path.name == "b.png":
            raise KeyboardInterrupt
        write_file(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("laconic.report.study.write.write_file", killed)
        write_figures(tmp_path, {"a.png": b"a", "b.png": b"b"})
    write_figures(tmp_path, {"c.png": b"c"})
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"c.png"}


def test_links_of_a_report_elsewhere_lead_to_the_study(tmp_path: Path) -> None:
    records = study(models=("minilm-sst2",), methods=("svd",), keeps=(0.5,), seeds=(0,), timed=False)
    for place, way in ((tmp_path / "study", "../study/models/"), ("s3://bucket/study", "s3://bucket/study/models/")):
        study_page = write_report(records, tmp_path / "out", "One", study=place).page.read_text()
        assert f'<a href="{way}' in study_page
    assert '<a href="models/' in write_report(records, tmp_path / "out", "One", study=tmp_path / "out").page.read_text()


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_the_order_of_the_records_does_not_matter(tmp_path: Path) -> None:
    records = study(models=("minilm-sst2",), methods=("svd", "drone"), keeps=(0.5, 0.3), seeds=(0, 1), timed=False)
    first = write_report(records, tmp_path / "first", "One")
    other = write_report(records[::-1], tmp_path / "other", "One")
    for name in ("page", "csv", "markdown"):
        assert getattr(first, name).read_bytes() == getattr(other, name).read_bytes()
    assert [path.name for path in first.figures] == [path.name for path in other.figures]


def test_nothing_to_report_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cell of the study is finished"):
        write_report([], tmp_path, "Nothing")


PROBE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, found = {};
  found.overflow = page.documentElement.scrollWidth - frame.clientWidth;
  found.small = [...page.querySelectorAll("th button")].filter(one => one.getBoundingClientRect().height < 24).length;
  const table = page.getElementById("cells");
  const head = [...table.tHead.rows[0].cells].find(one => one.dataset.column === "kl");
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].dataset.value);
  head.firstElementChild.focus();
  found.focused = page.activeElement === head.firstElementChild;
  head.firstElementChild.click();
  found.up = [head.getAttribute("aria-sort"), values()];
  head.firstElementChild.click();
  found.down = [head.getAttribute("aria-sort"), values()];
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
};
frame.srcdoc = document.getElementById("page").textContent;
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_phone_shows_it_whole_and_headings_sort(written: ReportPaths, tmp_path: Path) -> None:
    html = escape(written.page.read_text())
    (tmp_path / "phone.html").write_text(
        f'<!doctype html><meta charset="utf-8"><iframe style="width:{PHONE}px;height:800px;border:0"></iframe>'
        f'<textarea id="page" hidden>{html}</textarea><script>{PROBE}</script>'
    )
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000"]
    shown = subprocess.run(
        [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "phone.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    told = re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    assert told is not None
    found = json.loads(unescape(told[1]))
    assert found["overflow"] <= 0 and found["small"] == 0 and found["focused"]
    way, values = found["up"]
    numbers = [float(value) for value in values if value]
    assert way == "ascending" and numbers == sorted(numbers) and values[len(numbers) :] == ["", ""]
    way, values = found["down"]
    assert way == "descending" and [float(value) for value in values if value] == numbers[::-1] and values[-1] == ""
