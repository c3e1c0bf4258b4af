"""SQL over records and over a written report."""

from pathlib import Path

import pytest

from laconic.errors import UserError
from laconic.report.study import query, write_report
from laconic.report.tables import Column
from tests.report.study.records import study

RECORDS = study(models=("minilm-sst2",), methods=("svd", "wanda"), keeps=(0.7, 0.3), seeds=(0, 1))
COUNT = (
    "SELECT method, count(*) AS cells, avg(kl) AS kl FROM results WHERE NOT baseline GROUP BY method ORDER BY method"
)


def test_records_answer_sql() -> None:
    found = query(RECORDS, COUNT)
    assert found.columns == (Column("method"), Column("cells", "{:d}"), Column("kl", "{:.6g}"))
    kls = [one["evaluation"]["fidelity"]["kl"] for one in RECORDS if one["axes"]["method"] == "svd"]
    assert found.rows[0] == ("svd", 4, pytest.approx(sum(kls) / 4))


def test_a_report_answers_the_same(tmp_path: Path) -> None:
    write_report(RECORDS, tmp_path, "A study")
    assert query(tmp_path, COUNT) == query(RECORDS, COUNT)
    quoted = 'SELECT "glue/sst2 accuracy p" AS p, "latency 8x128" AS seconds FROM results WHERE seed = 1'
    assert query(str(tmp_path), quoted) == query(RECORDS, quoted)


@pytest.mark.parametrize("sql", ["SELECT nothing FROM results", "SELEC 1", "SELECT * FROM read_csv('results.csv')"])
def test_what_cannot_be_asked_is_one_sentence(sql: str) -> None:
    with pytest.raises(UserError, match=r"^The query cannot be answered: .*\.$") as raised:
        query(RECORDS, sql)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sql", ["", "  ", ";", "-- nothing", "SELECT 1; SELECT 2"])
def test_one_statement_is_answered(sql: str) -> None:
    with pytest.raises(UserError, match=r"^The query must be one statement, like SELECT \* FROM results; got '"):
        query(RECORDS, sql)


def test_no_column_hides_another() -> None:
    with pytest.raises(UserError, match=r"^The query gives two columns the name 'a'; name one otherwise, by AS"):
        query(RECORDS, "SELECT 1 AS a, 2 AS a")


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write the report of the study first"):
        query(tmp_path, COUNT)
    (tmp_path / "results.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="cannot be read"):
        query(tmp_path, COUNT)


def test_without_duckdb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laconic.report.study.write.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'laconic-lm\[study\]'"):
        query(RECORDS, COUNT)
