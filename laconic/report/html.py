"""Reports as self-contained HTML pages: a summary, figures, a table, and the method of each matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from laconic.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a report.

    Args:
        title: heading of the page.
        summary: paragraphs of plain text on the experiment, the data and the result.
        table: the results; a click on the heading of a column sorts by it.
        heading: title above the table.
        pictures: inline SVG by caption.
        narrow_pictures: other versions of some pictures, by the same captions, for screens below 40 rem.
        plans: for each model by name, the method of each matrix.
    """

    title: str
    summary: Sequence[str]
    table: Table
    heading: str = "Every model"
    pictures: Mapping[str, str] = field(default_factory=dict)
    narrow_pictures: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def render(page: Page) -> str:
    """The HTML of a page, which loads nothing from elsewhere.

    Args:
        page: its content.

    Example:
        >>> from laconic.report.tables import Column
        >>> "<h1>Report</h1>" in render(Page(title="Report", summary=[], table=Table((Column("method"),), ())))
        True
    """
    return load_template("page.html").render(vars(page))


def load_template(name: str) -> Template:
    """Load a template by its path relative to this file. Values in it are escaped."""
    environment = Environment(
        loader=PackageLoader("laconic.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)
