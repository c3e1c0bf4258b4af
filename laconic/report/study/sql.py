"""SQL over the results of a study, by DuckDB."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, parquet

from laconic.errors import UserError, install, must_be, reason_of
from laconic.paths import expanded
from laconic.report.study.files import as_arrow
from laconic.report.study.results_table import results_table
from laconic.report.tables import Column, Table, Value

PARQUET = "results.parquet"
TABLE = "results"
LIBRARY = "duckdb"


def query(source: Sequence[Mapping[str, Any]] | Path | str, sql: str) -> Table:
    """What `sql` selects from the table `results`, whose columns are those of results.csv.

    `source`: the records of a study, or the folder of a report that was written.

    Raises:
        UserError: DuckDB is not installed, there is no report in the folder, or the SQL is wrong, is not one statement,
            or gives two columns one name.
    """
    if find_spec(LIBRARY) is None:
        raise UserError(f"Queries of results need duckdb, not installed here: {install('study')}.")
    duckdb = import_module(LIBRARY)
    results = _stored(Path(source)) if isinstance(source, (str, Path)) else as_arrow(results_table(source))
    # A query reads what is given, and no files or addresses.
    with duckdb.connect(":memory:", config={"enable_external_access": False}) as connection:
        try:
            connection.register(TABLE, results)
            # Of several DuckDB answers the last alone, and of none with nothing.
            if len(connection.extract_statements(sql)) != 1:
                raise must_be("The query", f"one statement, like SELECT * FROM {TABLE}", sql)
            found = connection.execute(sql)
            names = [column[0] for column in found.description or ()]
            rows = found.fetchall()
        except duckdb.Error as error:
            raise UserError(f"The query cannot be answered: {reason_of(error)}.") from error
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"The query gives two columns the name '{twice[0]}'; name one otherwise, by AS.")
    columns = tuple(_column(name, [row[at] for row in rows]) for at, name in enumerate(names))
    return Table(columns, tuple(tuple(_plain(value) for value in row) for row in rows))


def _stored(folder: Path) -> Any:
    path = expanded(folder) / PARQUET
    try:
        return parquet.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no {PARQUET} in '{folder}'; write the report of the study first.") from error
    except (OSError, ArrowException) as error:
        raise UserError(f"The results '{path}' cannot be read: {reason_of(error)}.") from error


def _column(name: str, values: Sequence[object]) -> Column:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return Column(name, "{:d}")
    return Column(name, "{:.6g}" if kinds and kinds <= {int, float} else "{}")


def _plain(value: object) -> Value:
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
