"""Hooks of mkdocs: docstrings are checked, formulas become MathML, drawings become part of the page."""

import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

from tools.docstrings import missing

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.laconic")
INCLUDED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages whose text is a file at the root of the repository."""
_CELL = re.compile(
    r"<td([^>]*)>((?:<strong>)?[-–+]?\d[\d.,e+]*[ ×%]*(?:(?:±|/|–|\[|\(|,) ?[-\d][^<A-Z]*)?(?:</strong>)?)</td>"
)
"""A cell that has only numbers, such as `0.0905 / 0.851`."""


def on_config(config: Any) -> Any:
    """Register the fence of formulas, and warn of each public name without a docstring; `--strict` then fails."""
    fences = config["mdx_configs"].setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": mathml})
    for name in missing(ROOT):
        LOG.warning("%s is public and has no docstring.", name)
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page that shows a file of the repository, with its links into docs/ made relative to the page."""
    name = INCLUDED.get(page.file.src_uri)
    if name is None:
        return markdown
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Replace each `<img class="inline" src="NAME.svg">` by the drawing, and keep the numbers of a cell on one line.

    A drawing inside of the page uses the colours of the page.
    """
    folder = Path(config["docs_dir"])

    def svg(found: re.Match[str]) -> str:
        name = re.search(r'src="(?:\.\./)*([^"]+\.svg)"', found[0])
        return found[0] if name is None else (folder / name[1]).read_text(encoding="utf-8")

    return _CELL.sub(r'<td\1 class="figure">\2</td>', re.sub(r'<img[^>]*class="inline"[^>]*>', svg, html))


def mathml(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """A formula in LaTeX as MathML, which browsers draw without a script."""
    return f'<div class="{css_class}">{convert(source.strip(), display="block")}</div>'
