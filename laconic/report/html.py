"""The report as one self-contained HTML page: what was done, the table, the picture, the plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from laconic.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Page:
    """title:   of the page.
    summary:    paragraphs of plain text: what was done, on what, and what came out.
    table:      the results, under `heading`; a click on a column's heading sorts by it.
    pictures:   inline SVG by caption.
    plans:      site → what it became, by the name of the model.
    """

    title: str
    summary: Sequence[str]
    table: Table
    heading: str = "Every model"
    pictures: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def render(page: Page) -> str:
    """The HTML of `page`; it loads nothing from anywhere."""
    return template("page.html").render(page=page)


def template(name: str) -> Template:
    """A page's template, by its path beside this file; what it is given is escaped."""
    environment = Environment(
        loader=PackageLoader("laconic.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)
