"""Names given by users appear literally in Markdown: a parser of GitHub's dialect finds no markup in them."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from laconic.markdown import code, plain
from laconic.report.tables import Column, Table

NAMES = [
    "svd",
    "kfac_svd",
    "glue/sst2",
    "perplexity:t.txt",
    "a|b",
    "`a`",
    "a`b",
    "``",
    "`",
    "|",
    "\\",
    "a\\|b",
    "*a*",
    "_a_",
    "__a__",
    "a_b_c",
    "a__b",
    "~~a~~",
    "[a](b)",
    "![a](b)",
    "<b>a</b>",
    "<script>alert(1)</script>",
    "<!-- a -->",
    "a & b",
    "&amp;",
    "&lt;b&gt;",
    "$a$",
    "# a",
    "a #",
    "<http://a>",
    "a ` b | <i>c</i> \\` d",
]


class Shown(HTMLParser):
    """The text of each element called `tag`, and every kind of element."""

    def __init__(self, markdown: str, tag: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.kinds: set[str] = set()
        self._tag, self._inside = tag, False
        self.feed(MarkdownIt("gfm-like", {"linkify": False}).render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add(tag)
        if tag == self._tag:
            self._inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != self._tag

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    found = Shown(f"# {plain(name)}\n", "h1")
    assert found.texts == [name] and found.kinds == {"h1"}
    found = Shown(f"From {code(name)}.\n", "code")
    assert found.texts == [name] and found.kinds == {"p", "code"}


def test_a_table_keeps_its_cells() -> None:
    rows = tuple((name, 0.5) for name in NAMES)
    found = Shown(Table((Column("<i>|`name`"), Column("x", "{:.1f}")), rows).to_markdown(), "td")
    assert found.texts == [text for name in NAMES for text in (name, "0.5")]
    assert found.kinds == {"table", "thead", "tbody", "tr", "th", "td"}
    lines = "".join(f"| {code(name, in_table=True)} | x |\n" for name in NAMES)
    found = Shown(f"| a | b |\n|---|---|\n{lines}", "td")
    assert found.texts == [text for name in NAMES for text in (name, "x")]


def test_a_name_of_several_lines_stays_on_one() -> None:
    assert plain("a\n\n# b") == "a \\# b" and code("a\n\nb") == "`a b`"
